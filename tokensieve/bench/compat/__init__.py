"""Which architectures a sieve runs on, checked on tiny models."""
