"""A vector format from outside: one class, and an index, the list and the check know it."""

import pytest
import torch

from tokensieve.retrieval import Index
from tokensieve.retrieval.storage import FORMATS, VectorFormat, list_formats, register_format
from tokensieve.testing.formats import check_format


@pytest.fixture
def format_of():
    """Register a format for one test."""
    names = []

    def add(name, cls):
        names.append(name)
        return register_format(name)(cls)

    yield add
    for name in names:
        FORMATS.forget(name)


class Float8(VectorFormat):
    """One byte a dimension, as floats."""

    def encode(self, x):
        return {"codes": x.to(torch.float8_e4m3fn)}

    def decode(self, fields):
        return fields["codes"].float()


class Bfloat16(VectorFormat):
    """Two bytes a dimension: as many as float16, and fewer digits."""

    def encode(self, x):
        return {"codes": x.bfloat16()}

    def decode(self, fields):
        return fields["codes"].float()


class Complex(VectorFormat):
    """In a dtype that no file of ours holds."""

    def encode(self, x):
        return {"codes": x.to(torch.complex64)}

    def decode(self, fields):
        return fields["codes"].real.float()


@pytest.mark.parametrize("name", list_formats())
def test_the_packaged_formats_pass(name):
    check_format(name)


@pytest.mark.parametrize("cls", [Float8, Bfloat16])
def test_one_class_is_all_it_takes(cls, format_of, tmp_path):
    format_of("mine", cls)
    check_format("mine")
    assert "mine" in list_formats()
    with Index.create(tmp_path / "i", 16, codec="mine") as index:
        index.add([torch.randn(3, 16) for _ in range(5)])
    with Index.open(tmp_path / "i") as index:
        assert len(index.search(torch.randn(2, 16))) == 5
        assert not index.damaged


def test_what_no_file_holds_is_refused_before_anything_is_written(format_of, tmp_path):
    format_of("complex", Complex)
    with pytest.raises(AssertionError, match=r"codes \(torch.complex64\) cannot be stored"):
        check_format("complex")
    with Index.create(tmp_path / "i", 16, codec="complex") as index:
        with pytest.raises(ValueError, match="cannot be stored"):
            index.add([torch.randn(3, 16)])
        assert len(index) == 0


class Shifted(Float8):
    def score(self, fields, prepared):
        return super().score(fields, prepared) + 1


class Neighbours(Float8):
    def encode(self, x):
        return {"codes": (x - x.mean(0)).to(torch.float8_e4m3fn)}


class Transposed(Float8):
    def encode(self, x):
        return {"codes": x.T.to(torch.float8_e4m3fn)}


@pytest.mark.parametrize(
    ("cls", "says"),
    [
        (Shifted, "score is not the product"),
        (Neighbours, "depends on its neighbours"),
        (Transposed, "must be the token"),
    ],
)
def test_broken_formats_are_caught(cls, says, format_of):
    format_of("broken", cls)
    with pytest.raises(AssertionError, match=says):
        check_format("broken")
