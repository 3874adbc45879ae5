"""What texts come from, and how they are cut."""
