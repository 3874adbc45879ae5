"""Pipelines of diffusers with fewer tokens: what it does to their images, and what it saves."""
