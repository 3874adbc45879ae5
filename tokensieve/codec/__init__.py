"""Codec: vectors as discrete codes, and what turns them into these."""

from tokensieve._moved import below
from tokensieve.codec.codes import Codes
from tokensieve.codec.entropy import sign_entropy
from tokensieve.codec.quantizer import Quantizer
from tokensieve.codec.registry import (
    QUANTIZERS,
    list_quantizers,
    load_quantizer,
    quantizer,
    register_quantizer,
    save_quantizer,
)
from tokensieve.codec.tokenizer import Tokenizer, register_adapter
from tokensieve.codec.usage import Usage, usage

__all__ = [
    "QUANTIZERS", "Codes", "Quantizer", "Tokenizer", "Usage", "list_quantizers", "load_quantizer", "quantizer",
    "register_adapter", "register_quantizer", "save_quantizer", "sign_entropy", "usage",
]  # fmt: skip

__getattr__ = below(__name__)
