"""Texts and pages as token vectors."""
