"""Prompts: what a model still answers once the text in front of it was compressed, and when that pays."""
