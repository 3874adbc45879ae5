"""Text: what it costs, in whose tokens, and fewer of them.

Tokenizers are measured, audited, trained, extended and moved here. Hugging Face's ``tokenizers`` encodes and trains; models are
opened in :mod:`tokensieve.text.models` alone.
"""
