"""Prompt: text compressed in front of a model, and shown."""
