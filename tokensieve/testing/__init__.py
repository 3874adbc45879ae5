"""Checks of what this library and its methods promise, for authors and users."""
