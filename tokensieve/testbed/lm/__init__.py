"""A small trained causal LM with rotary positions and grouped queries, and what its cache is judged by."""

from .evaluate import answered, bits_per_byte, code, copying, follow, held_out, lookup, multi, needle, perplexity
from .model import LENGTH, SIZES, build, load, path
from .tasks import Speech, TaskSample, copy, facts, pairs, speech

__all__ = [
    "LENGTH",
    "SIZES",
    "Speech",
    "TaskSample",
    "answered",
    "bits_per_byte",
    "build",
    "code",
    "copy",
    "copying",
    "facts",
    "follow",
    "held_out",
    "load",
    "lookup",
    "multi",
    "needle",
    "pairs",
    "path",
    "perplexity",
    "speech",
]
