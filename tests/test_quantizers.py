"""Quantizers: the contract over all of them, the mathematics of each, bad input, names of before."""

import math
import subprocess
import sys
import warnings
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import tokensieve as ts
from tokensieve.codec import Codes, Quantizer, load_quantizer, register_quantizer, save_quantizer, sign_entropy, usage
from tokensieve.codec.registry import KINDS, QUANTIZERS
from tokensieve.testing.memory import Live

CASES = {
    "bsq": [{"bits": 9}, {"bits": 8, "groups": 2, "dim": 12}],
    "cascade": [{"codes": 32, "dim": 8}],
    "channels": [{"places": 16, "dim": 6, "codes": 16}],
    "depths": [{"dims": (4, 6), "codes": 16, "stages": 2}],
    "fsq": [{"levels": (8, 5, 5, 5)}, {"levels": (2, 3, 4), "dim": 12}, {"levels": (8,) * 11}],
    "gsq": [{"codes": 64, "dim": 8, "groups": 2}],
    "joint": [{"codes": 64, "dims": (4, 6), "weights": (1.0, 0.3)}],
    "lfq": [{"bits": 14}, {"bits": 8, "groups": 2, "dim": 12}],
    "product": [{"groups": 4, "dim": 8, "codes": 16}, {"of": "quantile", "groups": 2, "dim": 8, "bins": 4}],
    "quantile": [{"bins": 16, "dim": 5}],
    "residual": [
        {"stages": 3, "dim": 8, "codes": 16},
        {"stages": 2, "dim": 4, "of": "fsq", "levels": (5, 5, 5, 5), "gain": 4.0},
        {"stages": 2, "dim": 8, "codes": 32, "shared": True},
    ],
    "scales": [{"sides": (1, 2, 4), "dim": 8, "codes": 32}],
    "set": [{"codes": 32, "dim": 8}],
    "tied": [{"codes": 32, "dim": 8}],
    "vq": [
        {"codes": 4096, "dim": 8},
        {"codes": 64, "dim": 8, "cosine": True},
        {"codes": 64, "dim": 8, "update": "gradient", "kmeans": False, "revive": 0},
    ],
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*different, start.*:RuntimeWarning")
@pytest.mark.parametrize(("name", "options"), [(n, o) for n, several in CASES.items() for o in several])
def test_the_contract_holds(name, options):
    ts.testing.check_quantizer(ts.quantizer(name, **options))


def test_every_quantizer_is_checked_and_has_a_kind():
    assert set(ts.list_quantizers()) == set(CASES)
    assert {QUANTIZERS.entry(n).facts["kind"] for n in CASES} <= set(KINDS)
    assert ts.list_quantizers(kind="FSQ") == ["fsq", "quantile"]
    assert all(QUANTIZERS.entry(n).summary for n in CASES)
