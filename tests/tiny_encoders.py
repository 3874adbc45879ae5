"""Tiny encoders of real architectures, ready to be called."""

import torch

from tokensieve.bench.compat import tiny_encoders

ARCHITECTURES = {a.kind: a for a in tiny_encoders.architectures()}


def made(kind, **changes):
    torch.manual_seed(0)
    return EncoderOf(kind, **changes)


class EncoderOf:
    def __init__(self, kind, **changes):
        self.model = tiny_encoders.model(ARCHITECTURES[kind], **changes)
        self.inputs = tiny_encoders.inputs(self.model)

    def __call__(self, **more):
        with torch.no_grad():
            return self.model(**{**self.inputs, **more})
