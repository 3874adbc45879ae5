"""Under-trained tokens: rows that are found, tokens like them, and whether a model repeats them."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from tests.texts import trained
from tokensieve.cli.main import app
from tokensieve.testbed import lm
from tokensieve.text import models
from tokensieve.text.audit import audit, candidates, likeness, reference
from tokensieve.text.reach import reach
from tokensieve.text.vocabulary import Vocabulary


def planted(vocab=600, padded=616, seed=0):
    """Rows of a model that has trained all but 20 tokens, and none behind its vocabulary."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(padded, 48, generator=generator)
    away = torch.randn(48, generator=generator)
    held = torch.randperm(300, generator=generator)[:20] + 290
    untrained = torch.cat([held, torch.arange(vocab, padded)])
    rows[untrained] = away + 0.05 * torch.randn(len(untrained), 48, generator=generator)
    return rows, held.tolist()


def test_untrained_rows_are_found_and_tokens_like_them_flagged():
    tokenizer = trained().tokenizer
    rows, held = planted()
    found = audit(tokenizer, rows, most=20)
    assert found.by == "cosine"
    assert set(range(600, 616)) <= set(found.untrained)
    assert {f.id for f in found.flags} == set(held)
    assert found.certain <= 20
    assert all(f.token == Vocabulary.of(tokenizer).strings[f.id] for f in found.flags)


def test_trained_special_tokens_are_no_reference():
    rows = torch.randn(50, 32, generator=torch.Generator().manual_seed(0))
    rows[[3, 7, 9, 11]] = rows[3] * torch.tensor([1.0, 1.02, 0.98, 3.0])[:, None]
    assert reference(rows, [1, 2, 3, 7, 9, 11]) == (3, 7, 9)
    assert reference(rows, [1, 2, 4]) == ()
    assert reference(rows, []) == ()
    rows[20:24] = 0
    assert reference(rows, [20, 21, 22, 23]) == ()


def test_candidates_are_ids_that_text_cannot_train():
    tokenizer = trained().tokenizer
    vocabulary = Vocabulary.of(tokenizer)
    got = candidates(vocabulary, reach(tokenizer, vocabulary), 602)
    bytes_ = {vocabulary.bytes[i] for i in got if i < 600 and vocabulary.bytes[i]}
    assert bytes_ == {bytes([b]) for b in (0xC0, 0xC1, *range(0xF5, 0x100))}
    assert {0, 600, 601} <= set(got)


def test_without_a_reference_short_rows_are_flagged():
    rows = torch.randn(600, 48, generator=torch.Generator().manual_seed(0))
    rows[400] *= 0.01
    found = audit(trained().tokenizer, rows, most=3)
    assert (found.by, found.untrained, found.certain) == ("norm", (), 0)
    assert found.flags[0].id == 400
    assert float(likeness(rows, ()).max()) == pytest.approx(found.flags[0].likeness)
    with pytest.raises(ValueError, match="the model has 599 rows, its tokenizer 600 ids"):
        audit(trained().tokenizer, rows[:599])


def test_the_probe_is_one_of_repetition():
    model, tokenizer = lm.load()
    backend = tokenizer.backend_tokenizer
    words = [backend.token_to_id(f"Ġ{w}") for w in ("file", "the", "name")]
    got = models.repeats(model, backend, words)
    assert len(got) == 3
    assert all(0 <= p <= 1 for p in got)
    assert models.repeats(model, backend, words[1:2]) == pytest.approx(got[1:2], rel=1e-3)
    assert models.repeats(model, backend, []) == []


def test_the_command_audits_models_and_tokenizers(tmp_path):
    done = CliRunner().invoke(app, ["tokenizer", "audit", str(lm.path()), "--most", "5", "--json"])
    found = json.loads(done.stdout)
    assert len(found["flags"]) == len(found["control"]) == 5
    assert found["reach"]["unreachable"] == []
    shown = CliRunner().invoke(app, ["tokenizer", "audit", str(lm.path()), "--most", "5"])
    assert shown.exit_code == 0, shown.output
    assert "cannot be repeated" in shown.output
    trained().save(tmp_path / "alone")
    alone = CliRunner().invoke(app, ["tokenizer", "audit", str(tmp_path / "alone")])
    assert "holds no weights" in alone.output
