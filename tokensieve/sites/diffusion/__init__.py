"""Tokens of diffusers' denoisers: around self-attention, and between blocks."""
