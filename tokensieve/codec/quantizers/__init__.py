"""Quantizers: one short file an idea, each registered by name."""
