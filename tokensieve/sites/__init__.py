"""Sites: the only floor that knows transformers' models. Hooks, attention taps, caches."""
