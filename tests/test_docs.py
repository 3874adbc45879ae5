"""The examples in the documentation run as they stand."""

import re
from pathlib import Path

import torch

import tokensieve as ts
from tests.models import decoder, text
from tokensieve import registry

ROOT = Path(__file__).parent.parent


def test_the_method_of_the_guide_is_complete():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/writing-a-method.md").read_text(), re.S)
    try:
        exec(compile("\n".join(blocks), "writing-a-method.md", "exec"), {})
        assert "halfhalf" in ts.methods()
    finally:
        registry._METHODS.pop("halfhalf", None)
        registry._SYSTEMS.pop("halfhalf", None)


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
