"""Compaction, and the files of an index: what stays is what an index made anew would hold, to the byte."""

import random

import pytest
import torch
from safetensors.torch import load_file

from tokensieve.retrieval import Index
from tokensieve.retrieval.storage import FORMATS, files

DIM = 16


def filled(folder, numbers, codec, commits=1):
    """An index of some documents, each made of its number alone."""
    index = Index.create(folder, DIM, codec, fitted=fitted(codec))
    for part in range(commits):
        some = numbers[part::commits]
        vectors = [torch.randn(1 + n * 7 % 23, DIM, generator=torch.Generator().manual_seed(n)) for n in some]
        notes = [
            {"text": " ".join(random.Random(n).choices(["red", "fox", "parse_args", "rare" * n], k=9))} for n in some
        ]
        index.add(vectors, [f"d{n}" for n in some], notes)
    return index


def fitted(codec):
    """What a codec that learns has learnt, the same for all indexes here."""
    sample = torch.randn(512, DIM, generator=torch.Generator().manual_seed(0))
    return FORMATS.get(codec)(DIM).fit(sample).state or None


def held(folder):
    """The bytes of the only segment."""
    (file,) = folder.glob("*.safetensors")
    return file.read_bytes()


@pytest.mark.parametrize("codec", ["float32", "int8", "int4", "residual2"])
def test_what_stays_of_a_segment_is_that_of_an_index_made_anew(tmp_path, codec):
    numbers = list(range(300))
    index = filled(tmp_path / "i", numbers, codec)
    gone = random.Random(1).sample(numbers, 100)
    index.delete([f"d{n}" for n in gone])
    index.compact()
    assert index.verify() == []
    index.close()
    filled(tmp_path / "anew", [n for n in numbers if n not in gone], codec).close()
    assert held(tmp_path / "i") == held(tmp_path / "anew")
    # What has nothing deleted is not written again.
    file = next((tmp_path / "i").glob("*.safetensors"))
    Index.open(tmp_path / "i").compact()
    assert file.exists()


def test_segments_that_are_joined_hold_what_each_held(tmp_path):
    numbers = list(range(60))
    index = filled(tmp_path / "i", numbers, "int8", commits=3)
    index.delete([f"d{n}" for n in numbers[::3]])
    index.compact()
    assert index.verify() == []
    assert len(list((tmp_path / "i").glob("*.safetensors"))) == 1
    anew = filled(tmp_path / "anew", [n for n in numbers if n % 3], "int8")
    assert sorted(index.ids()) == sorted(anew.ids())
    for id in anew.ids():
        assert torch.equal(index.get(id).vectors, anew.get(id).vectors)
        assert index.metadata([id]) == anew.metadata([id])
    query = torch.randn(3, DIM)
    for how in ({}, {"words": "fox rare", "fuse": "rrf"}, {"words": '"fox"'}):
        assert index.search(query, 20, **how) == anew.search(query, 20, **how)


def test_a_damaged_block_is_not_copied_as_if_it_were_sound(tmp_path):
    index = filled(tmp_path / "i", list(range(40)), "int8")
    index.delete(["d3"])
    (file,) = index.folder.glob("*.safetensors")
    before = file.read_bytes()
    at = before.index(files.map_tensors(file)["token.codes"].numpy().tobytes())
    file.write_bytes(before[:at] + bytes([before[at] ^ 255]) + before[at + 1 :])
    again = Index.open(index.folder)
    index.close()
    again.compact()
    assert "token block 0" in str(again.verify())


def test_files_are_those_that_the_library_of_the_format_reads(tmp_path):
    whole = {
        "scalar": torch.tensor(7), "none": torch.empty(0, 3), "bytes": torch.arange(5, dtype=torch.uint8),
        "truth": torch.tensor([True, False]), "half": torch.randn(3, 2).half(), "short": torch.randn(2).bfloat16(),
        "across": torch.randn(3, 4).T, "wide": torch.randn(2, 2).double(), "ä": torch.ones(1),
    }  # fmt: skip
    parts = [torch.arange(6, dtype=torch.int8).view(2, 3), torch.empty(0, 3, dtype=torch.int8), torch.ones(1, 3).char()]
    files.write_tensors(tmp_path / "x", {**whole, "parts": parts})
    for read in (load_file(tmp_path / "x"), files.map_tensors(tmp_path / "x")):
        assert {k: v.dtype for k, v in read.items()} == {k: v.dtype for k, v in (whole | {"parts": parts[0]}).items()}
        assert all(torch.equal(read[k], v) for k, v in (whole | {"parts": torch.cat(parts)}).items())
    assert files.crc(parts) == files.crc(torch.cat(parts))
    with pytest.raises(ValueError, match=r"odd .*complex.* cannot be stored"):
        files.write_tensors(tmp_path / "y", {"odd": torch.ones(1, dtype=torch.complex64)})
