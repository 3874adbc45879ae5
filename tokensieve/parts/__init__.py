"""Parts that methods are composed of: pure functions on tensors."""

from tokensieve._moved import below

__getattr__ = below(__name__)
