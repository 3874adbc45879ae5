"""The bench of tokenizers: what each costs and keeps, on one's own images or speech."""
