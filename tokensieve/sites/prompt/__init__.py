"""Prompt: text in front of a model, cut into units, weighed by small models, and brought under a budget of tokens."""
