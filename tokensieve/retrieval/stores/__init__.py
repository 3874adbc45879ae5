"""Stores beside the Index: adapters to databases, each an extra of its own."""
