"""Testbeds: what is asked of one, and the leaderboard's part of it."""

from dataclasses import replace

import pytest

from benchmarks import leaderboard
from benchmarks.beds import BEDS, PACKAGED, Bed, told, visual
from benchmarks.systems import bed as checks
from tokensieve import testbed

MICRO = replace(PACKAGED, name="micro", shares=(1 / 9,), seeds=(0, 1), per_kind=1)


@pytest.fixture
def bed(tmp_path, monkeypatch):
    """An untrained model that is taken to answer everything but how many, and reads only where nothing is left out."""
    file = tmp_path / "weights"
    file.write_bytes(b"some")
    asked = []

    def correct(self, model, processor, items, batch):
        answered = self.answers(model, processor, items)
        asked.append([i.kind for i in items])
        assert len(answered) == len(items)
        return [i.kind != "count" and (i.kind != "reading" or len(asked) <= 2) for i in items]

    monkeypatch.setattr(Bed, "correct", correct)
    monkeypatch.setattr(leaderboard, "names", lambda: ["random", "uniform", "pool", "fastervlm", "pyramiddrop"])
    made = replace(MICRO, weights=lambda: file, load=lambda: (testbed.build("micro").eval(), testbed.build_processor()))
    monkeypatch.setitem(BEDS, "micro", made)
    return made, asked


def test_a_testbed_of_ones_own_gets_its_part_of_the_page(bed, tmp_path):
    made, asked = bed
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- micro -->\n<!-- /micro -->\nbehind\n")
    leaderboard.main(["micro"], tmp_path, page)
    text = page.read_text()
    assert "### micro, 64 of 576 visual tokens" in text
    assert "below 80% with all tokens: count; what" in " ".join(text.split())
    assert "| fastervlm ↓ | 64 | 64 |" in text
    row = next(line for line in text.splitlines() if line.startswith("| fastervlm"))
    assert row.split("|")[5:11] == [" 100.0 ", " 100.0 ", " 100.0 ", " 0.0 ", " 75.0 ", " 0.0 "]
    assert "- `pyramiddrop, keep 64`" in text
    assert text.startswith("before\n")
    assert text.endswith("behind\n")
    assert all("count" not in kinds for kinds in asked[2:])  # what is left out is not asked
    assert len(asked) == 2 + 4 * 2
    leaderboard.main(["micro"], tmp_path, page)  # everything is known
    assert len(asked) == 2 + 4 * 2
    assert page.read_text() == text
    made.weights().write_bytes(b"other")
    with pytest.raises(ValueError, match="other weights"):
        leaderboard.main(["micro"], tmp_path, page)


def test_a_testbed_that_answers_nothing_has_no_tables(bed, tmp_path, monkeypatch):
    monkeypatch.setattr(
        Bed, "correct", lambda self, model, processor, items, batch: _none(self, model, processor, items)
    )
    page = tmp_path / "page.md"
    page.write_text("<!-- micro -->\n<!-- /micro -->\n")
    leaderboard.main(["micro"], tmp_path, page)
    assert "identity 0.0%" in page.read_text()
    assert "Left out" in page.read_text()
    assert "|" not in page.read_text()


def _none(bed, model, processor, items):
    bed.answers(model, processor, items)
    return [False] * len(items)


def test_kinds_below_80_percent_are_left_out():
    full = [{"identity": 1.0, "count": 0.7, "reading": 0.9}, {"identity": 0.9, "count": 0.8, "reading": 0.7}]
    assert told(full) == pytest.approx({"identity": 0.95, "reading": 0.8})


def test_the_packaged_one_is_a_testbed():
    model, processor = PACKAGED.load()
    items = PACKAGED.test_set(20, 1, 7)
    assert visual(model) == 576
    assert PACKAGED.text(processor, items) == 9
    assert PACKAGED.answers(model, processor, items[:2]) == [i.answer for i in items[:2]]
    assert PACKAGED.correct(model, processor, items[:2], 2) == [True, True]
    short = replace(PACKAGED, new_tokens=0)
    with pytest.raises(ValueError):
        short.correct(model, processor, items[:2], 2)


def test_one_seed_is_too_few_and_an_unknown_name_says_the_known():
    with pytest.raises(ValueError, match="two at least"):
        replace(PACKAGED, seeds=(0,))
    with pytest.raises(SystemExit, match="packaged"):
        leaderboard.main(["nothing"])


def test_a_check_asks_another_testbed_for_the_same_share_of_its_tokens(bed, monkeypatch):
    made, asked = bed
    monkeypatch.setattr(checks, "TOKENS", 4 * 576)
    context = checks.CheckContext(replace(made, test_set=few))
    assert context.right("random", 64) == 0.8
    assert context.left("random", 64) == 16
    assert len(asked) == 1
    ((_, kept),) = context.kept("random", 64, count=1)
    assert len(kept) == 16
    assert 0 <= context.on_object("random", 64) <= 1


@pytest.mark.slow
def test_checks_on_another_testbed_leave_the_record_alone(bed, tmp_path, monkeypatch):
    from benchmarks.systems import __main__ as systems

    monkeypatch.setitem(BEDS, "micro", replace(bed[0], test_set=few))
    before = systems.RECORD.read_bytes()
    rows = systems.elsewhere("micro", [380], tmp_path)
    assert (rows["380"]["status"], set(rows["380"])) == ("runs", {"status", "check", "numbers", "record"})
    assert systems.elsewhere("micro", [], tmp_path) == rows
    assert systems.RECORD.read_bytes() == before


def few(n_scenes, questions_per_kind, seed):
    return testbed.test_set(10, 1, seed)
