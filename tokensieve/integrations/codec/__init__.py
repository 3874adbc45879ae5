"""Tokenizers of other libraries under one protocol; each is imported when it is asked for."""
