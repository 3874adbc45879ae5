"""Measure reductions on models: cost, time, memory, accuracy; and show the result."""
