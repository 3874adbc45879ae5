"""Encoders of images, sound and text: their blocks, which of their tokens may leave, and reduction between blocks."""
