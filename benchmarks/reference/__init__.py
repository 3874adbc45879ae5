"""Trainable parts: each an ordinary torch module, small enough to train on the spot."""
