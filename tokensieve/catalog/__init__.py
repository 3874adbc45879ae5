"""The table of published systems, and what answers to each."""
