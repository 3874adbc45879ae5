"""The examples in the documentation run as they stand."""

import re
import sys
from pathlib import Path
from types import ModuleType

import torch

import tokensieve as ts
from tests.models import decoder, text
from tokensieve.core.method_registry import METHODS
from tokensieve.core.plan import PLANS

ROOT = Path(__file__).parent.parent


def test_the_method_of_the_guide_is_complete(monkeypatch):
    """And keeps the contract: the guide checks it."""
    guide = ModuleType("guide")  # pickling looks a class up in its module
    monkeypatch.setitem(sys.modules, "guide", guide)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/writing-a-method.md").read_text(), re.S)
    try:
        exec(compile("\n".join(blocks), "writing-a-method.md", "exec"), vars(guide))
        assert "halfhalf" in ts.list_methods()
    finally:
        METHODS.forget("halfhalf")
        PLANS.forget("halfhalf")


def test_the_reference_names_every_public_name():
    page = (ROOT / "docs/reference.md").read_text()
    missing = [n for n in ts.__all__ if not n.startswith("__") and f"::: tokensieve.{n}\n" not in page]
    assert missing == []


def test_the_page_on_encoders_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/encoders.md").read_text(), re.S)
    found: dict = {"folder": tmp_path / "head"}
    exec(compile("\n".join(blocks), "encoders.md", "exec"), found)
    assert found["fewer"].lengths.tolist() == [(n + 1) // 2 for n in found["documents"].lengths.tolist()]
    assert found["again"].identity.dim == 128
    assert [hit.id for hit in found["hits"]] == ["open"]


def test_the_page_on_retrieval_runs(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/retrieval.md").read_text(), re.S)
    found: dict = {"folder": tmp_path / "my.index"}
    exec(compile("\n".join(blocks), "retrieval.md", "exec"), found)
    assert found["hit"].document == "note"
    assert found["hit"].highlights


def test_the_page_on_the_cache_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/cache.md").read_text(), re.S)
    inputs = text(180, 200)
    found: dict = {"llm": decoder(), "inputs": inputs}
    found["question"] = {k: torch.cat([v, torch.ones(2, 3, dtype=torch.long)], 1) for k, v in inputs.items()}
    exec(compile("\n".join(blocks), "cache.md", "exec"), found)
    assert found["answer"].shape == (2, 220)
    assert found["held"].get_seq_length() == 203 + 19


def test_the_arithmetic_of_a_hundred_million_documents_holds():
    page = (ROOT / "docs/scale.md").read_text()
    passages, vectors = 1e8, {"all": 116.3, "keep 0.5": 58.4, "keep 0.33": 38.4}
    bits = {"float16": (16, 0), "int4": (4, 2), "residual2": (2, 4), "binary": (1, 0)}
    rows = re.findall(
        r"^\| (all|keep [\d.]+), (\w+), (\d+) \| ([\d.]+) G \|" + 3 * r" ([\d.]+) TB \|" + 2 * r" \$(\d+) \|",
        page,
        re.M,
    )
    assert len(rows) == 7
    for name, codec, dim, giga, stored, sketched, whole, block, objects in rows:
        each, (per, scale) = vectors[name], bits[codec]
        token, small = each * (int(dim) * per / 8 + scale), each / 8 * (int(dim) + 2)
        total = passages * (token + small + 1000) / 1e12
        assert abs(float(giga) - passages * each / 1e9) < 0.06
        for said, meant in ((stored, passages * token / 1e12), (sketched, passages * small / 1e12), (whole, total)):
            assert abs(float(said) - meant) < 0.0075, (name, codec, dim, said, meant)
        assert abs(int(block) - 1000 * total * 0.08) < 1
        assert abs(int(objects) - 1000 * total * 0.023) < 1
