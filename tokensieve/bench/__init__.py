"""Measure reductions on models: cost, time, memory, accuracy; and show the result."""

from tokensieve._moved import below

__getattr__ = below(__name__)
