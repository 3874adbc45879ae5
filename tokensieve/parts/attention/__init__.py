"""Attention computed where it is asked for: rows, pages, anchors."""
