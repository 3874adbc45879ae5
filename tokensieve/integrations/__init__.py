"""Integrations: other people's programs."""
