"""Sites: the only floor that knows transformers' models. Hooks, attention taps, caches."""

from tokensieve._moved import below

__getattr__ = below(__name__)
