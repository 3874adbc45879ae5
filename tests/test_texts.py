"""People's own texts: what a folder holds, and what is still known of it once the cache was compressed."""

import numpy as np
import pytest
import torch

import tokensieve as ts
from tokensieve.bench import columns
from tokensieve.bench.continuations import BEFORE, Continuations
from tokensieve.bench.equal import FULL, WHOLE, cached
from tokensieve.bench.own import _texts_rows
from tokensieve.bench.results import OwnSettings, Results
from tokensieve.bench.rounds import Rounds
from tokensieve.bench.texts import NEXT, read_texts
from tokensieve.sites.model.decoder import decoder
from tokensieve.testbed import lm

WINDOW = 320
SETTINGS = OwnSettings("lm", "texts", "", 2, 0, 1, 16, "float32", "cpu")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("tokensieve.bench.clocks.gc.collect", lambda: 0)


@pytest.fixture(scope="module")
def made():
    return lm.load()


@pytest.fixture(scope="module")
def say(made):
    return lm.speech(made[1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("texts")
    code = next(d.text for d in lm.held_out() if d.kind == "code" and len(d.text) > 4000)
    (out / "a.py").write_text(code[:4000])
    (out / "b.txt").write_bytes(b"\xef\xbb\xbf" + code[:700].replace("\n", "\r\n").encode())
    (out / "inner").mkdir()
    (out / "inner" / "c.md").write_text(code[1000:3000])
    (out / ".hidden").write_text(code)
    (out / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n\xff")
    (out / "tiny.txt").write_text("Hi.")
    return out


def read(folder, made, say, **changes):
    return read_texts(folder, made[1], **{"say": say, "window": WINDOW, "limit": None, "seed": 0} | changes)


# ---- reading ------------------------------------------------------------------------------------------------------------


def test_a_folder_is_read_and_what_cannot_be_is_named(folder, made, say):
    found = read(folder, made, say)
    assert [t.name for t in found.items] == ["a.py", "b.txt", "inner/c.md"]
    assert [line.split(":")[0] for line in found.skipped] == ["picture.png", "tiny.txt"]
    assert "no text in UTF-8" in found.skipped[0]
    assert "it takes 64" in found.skipped[1]
    assert found.notes == [f"1 of 3 texts are shorter than the window of {WINDOW} tokens and are read whole"]
    a, b, _ = found.items
    assert (len(a.ids), a.context) == (WINDOW, WINDOW - WINDOW // 4)
    assert len(b.ids) < WINDOW
    assert "\r" not in made[1].decode(b.ids)
    assert a.size == len(made[1].decode(a.ids[a.context + 1 :]).encode())
    long = read(folder, made, say, window=1024, limit=1).items
    assert [(len(t.ids), t.context) for t in long] == [(1024, 1024 - NEXT)]
    assert read(folder, made, None).items[0].planted is None


def test_folders_that_hold_nothing(folder, made, say, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        read(tmp_path / "nowhere", made, say)
    with pytest.raises(ValueError, match="it is empty"):
        read(tmp_path, made, say)
    (tmp_path / "a.txt").write_text("Hi.")
    with pytest.raises(ValueError, match=r"none of its 1 files can be read: a\.txt: "):
        read(tmp_path, made, say)


def test_facts_are_planted_and_asked_in_the_same_words(folder, made, say):
    text = read(folder, made, say).items[0]
    told = made[1].decode(text.planted.ids)
    assert told.count("The code of") == 2 * len(text.planted.answers)
    assert len(text.planted.ids) == len(text.ids)


# ---- continuing ---------------------------------------------------------------------------------------------------------


def run(made, say, folder, out, methods=("random", "snapkv", "keydiff"), limit=2, budgets=(0.3,)):
    model, tokenizer = made
    found = read(folder, made, say, limit=limit)
    cells, left = cached(model, tokenizer, methods, budgets)
    assert not left
    results = Results.open(out, SETTINGS, found.skipped, [t.to_json() for t in found.items])
    rounds = Rounds(results, Continuations(model, 0), cells)
    rounds.run(found.items, 1)
    return rounds, found.items


def test_one_prefill_serves_all_methods(made, say, folder, tmp_path, monkeypatch):
    """Layers run over each context once, plain and planted; questions, continuations and timed tokens are short."""
    monkeypatch.setattr(Continuations, "_peak", lambda *_: None)
    seen = []
    handle = decoder(made[0]).layers[0].mlp.register_forward_pre_hook(lambda m, args: seen.append(args[0].shape[1]))
    rounds, (text, _) = run(made, say, folder, tmp_path, limit=2)
    handle.remove()
    long = [n for n in seen if n > 100]
    contexts = [t.context for t in read(folder, made, say, limit=2).items]
    planted = [t.planted.context for t in read(folder, made, say, limit=2).items]
    assert sorted(long) == sorted(n for n in (*contexts, *planted) if n > 100)
    assert {c.method for c in rounds.cells} == {"full", "random", "snapkv", "keydiff"}
    assert text.planted is not None


@pytest.mark.parametrize("name", ["snapkv", "keydiff", "zipcache", pytest.param("tidaldecode", marks=pytest.mark.slow)])
def test_records_are_those_of_a_run_of_its_own(made, say, folder, name):
    model, tokenizer = made
    text = read(folder, made, say).items[0]
    work = Continuations(model, 0)
    (cell,), _ = cached(model, tokenizer, [name], [0.3])
    with work.opened([text], [WHOLE, cell]) as measure:
        (plain,), whole = measure(WHOLE)
        (record,), cost = measure(cell)

    def follow(ids, context):
        rows = torch.as_tensor(ids)[None]
        cache = ts.prefill(model, rows[:, :context])
        held, out = ts.cache_bytes(cache), []
        for at in range(context, rows.shape[1] - 1) if name == "tidaldecode" else [context]:
            upto = at + 1 if name == "tidaldecode" else rows.shape[1] - 1
            mask = torch.ones(1, upto, dtype=torch.long)
            with torch.no_grad():
                out.append(model(rows[:, at:upto], past_key_values=cache, attention_mask=mask).logits[0])
        return torch.cat(out), held

    def right(ids, context, span):
        said = follow(ids, context)[0].argmax(-1).numpy() == ids[context + 1 :]
        return bool(said[span[0] - context - 1 : span[1] - context - 1].all())

    full, all_bytes = follow(text.ids, text.context)
    with ts.sieve(model, cell.plan, seed=0):
        logits, held = follow(text.ids, text.context)
        sample = text.planted
        after = np.mean([right(sample.ids, sample.context, span) for span in sample.answers])
        each = (len(sample.ids) - sample.context) // len(sample.answers)
        before = []
        for i, (a, b) in enumerate(sample.answers[:BEFORE]):
            asked = np.concatenate([sample.ids[: sample.context], sample.ids[sample.context + i * each : b]])
            end = len(asked) - (b - a)
            before.append(right(asked, end - 1, (end, len(asked))))
    gold = torch.as_tensor(text.ids[text.context + 1 :])
    log, plain_log = logits.log_softmax(-1), full.log_softmax(-1)
    assert record["nats"] == pytest.approx(float(-log.gather(-1, gold[:, None]).mean()), abs=1e-4)
    assert record["bits"] == pytest.approx(record["nats"] * len(gold) / text.size / np.log(2), abs=1e-4)
    assert record["agree"] == pytest.approx(float((log.argmax(-1) == plain_log.argmax(-1)).float().mean()), abs=1e-4)
    assert record["kl"] == pytest.approx(float((plain_log.exp() * (plain_log - log)).sum(-1).mean()), abs=1e-3)
    assert (cost["kv_bytes"], whole["kv_bytes"]) == (held, all_bytes)
    assert record["after"] == pytest.approx(after)
    assert record["before"] == pytest.approx(np.mean(before))
    assert plain["kl"] == 0
    assert plain["agree"] == 1


def test_rows_hold_every_method_against_random_that_holds_as_many_bytes(made, say, folder, tmp_path):
    rounds, texts = run(made, say, folder, tmp_path, ("random", "zipcache"))
    _texts_rows(rounds)
    rows = rounds.results.data["rows"]
    beside = rows[rows["zipcache@0.3"]["random_at"]]
    assert beside["added"]
    assert beside["held"] == pytest.approx(rows["zipcache@0.3"]["held"], rel=0.04)
    assert rows[FULL]["held"] == 1
    difference = rows["zipcache@0.3"]["paired"]["likelihood"]["full"]
    nats = [[rounds.records[k][t.name]["nats"] for t in texts] for k in ("zipcache@0.3", FULL)]
    assert difference["mean"] == pytest.approx(np.mean(nats[1]) - np.mean(nats[0]))
    shown = columns.columns("page", rows)
    names = [c.name for c in shown]
    assert {
        "held",
        "ppl",
        "ppl vs full",
        "ppl vs random",
        "after",
        "before",
        "agree",
        "KL",
        "peak MB",
        "prefill",
    } <= set(names)
    assert not {"mean tok", "FLOPs", "all", "x floor", "pays", "encode"} & set(names)
    worse = next(c for c in shown if c.name == "ppl vs full").show(rows["zipcache@0.3"], rows)
    assert worse == "not distinguishable" or worse.startswith("+")


def test_methods_of_other_sites_are_refused(made):
    with pytest.raises(ValueError, match="visionzip runs at handoff"):
        cached(made[0], made[1], ["visionzip"], [0.3])
