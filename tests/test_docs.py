"""The examples in the documentation run as they stand, links lead somewhere, and messages are those that are printed."""

import importlib.util
import json
import pkgutil
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import tokensieve as ts
from benchmarks import readme
from tests.asking import TalkingProcessor, fake_subject
from tests.models import decoder, llava, prompt, text
from tests.texts import corpus, trained
from tokensieve.bench.asking import QuestionPrompts
from tokensieve.bench.blocks import BLOCKS
from tokensieve.bench.columns import COLUMNS
from tokensieve.bench.questions import Question
from tokensieve.cli.main import app
from tokensieve.codec import QUANTIZERS
from tokensieve.core.method_registry import METHODS
from tokensieve.core.plan import PLANS
from tokensieve.core.registry import PLUGINS
from tokensieve.core.signal_table import SIGNALS
from tokensieve.retrieval.storage import FORMATS
from tokensieve.testbed import lm
from tokensieve.testing import check_prompt_method
from tokensieve.text.rows import INITS

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))


def run(page: str, **found: Any) -> dict[str, Any]:
    """The Python blocks of a page as one program; ``found`` is what it takes for granted."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.S)
    module = sys.modules["page"] = ModuleType("page")  # where what it defines is found, to be pickled
    module.__dict__.update(found)
    exec(compile("\n".join(blocks), page, "exec"), module.__dict__)
    return module.__dict__


@pytest.fixture
def forget():
    """Method names to take out of the registry behind a test."""
    names: list[str] = []
    yield names
    for name in names:
        METHODS.forget(name)
        if name in PLANS:
            PLANS.forget(name)


def test_the_method_of_the_guide_is_complete(forget):
    forget.append("halfhalf")
    run("docs/extend/method.md")
    assert "halfhalf" in ts.list_methods()


def test_the_signals_of_the_guide_are_complete(forget):
    forget += ["nearest", "disputed"]
    try:
        found = run("docs/extend/signal.md", vlm=llava(), pictured=prompt((1, 2)))
        assert found["r"].apply(found["x"]).shape == (2, 64, 64)
        for name in ("nearest", "disputed"):
            ts.testing.check_method(name)
    finally:
        for name in ("depth", "disagreement"):
            SIGNALS.forget(name)


def test_the_cache_method_of_the_guide_is_complete(forget):
    forget.append("long-keys")
    assert run("docs/extend/cache-method.md", llm=decoder(), inputs=text(40, 30))["answer"].shape == (2, 60)


def test_the_vector_format_of_the_guide_is_complete(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        assert len(run("docs/extend/vector-format.md")["hits"]) == 2
    finally:
        FORMATS.forget("float8")


def test_the_bench_column_of_the_guide_is_complete():
    try:
        run("docs/extend/bench-column.md")
        rows = {"full": {"kv_bytes": 8}}
        assert COLUMNS.get("of full").show({"kv_bytes": 6}, rows) == "0.75"
    finally:
        COLUMNS.forget("of full")


def test_the_report_block_of_the_guide_is_complete():
    try:
        run("docs/extend/report-block.md")
    finally:
        BLOCKS.forget("smallest")


def test_the_registry_of_the_guide_is_complete():
    assert len(run("docs/extend/chapter.md")["GREETINGS"]) == 1


def test_the_quickstart_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = run("docs/start/quickstart.md")
    assert found["answer"].strip()
    assert set(found["s"].last.layer_tokens) == {64.0}
    assert 0 < found["cost"].share < 1


def test_the_page_on_subtokens_runs():
    model, tokenizer = lm.load()
    found = run("docs/how-to/subtokens.md", model=model, tokenizer=tokenizer)
    assert (found["merged"].counts < found["inputs"]["attention_mask"].sum(1)).all()


def test_the_page_on_reading_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, tokenizer = lm.load()
    say = lm.speech(tokenizer)
    made = [lm.pairs(np.random.default_rng(i), say, 256, 1) for i in range(16)]
    known = []
    for m in made:
        ids, each = torch.from_numpy(m.ids), len(m.ids) - m.context
        line = int(m.depths[0] * (m.context // each))
        known.append((ids[: m.context], ids[m.context : m.answers[0][0]], (line + 1) * each))
    text_ids, question_ids, _ = known[0]
    found = run("docs/how-to/reading.md", model=model, known=known, text_ids=text_ids, question_ids=question_ids)
    assert found["read"].read <= len(text_ids)
    assert found["answer"].shape[1] > found["read"].ids.shape[1]


def test_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = run("README.md")
    assert found["answer"].shape[0] == 1
    assert set(found["s"].last.layer_tokens) == {64.0}


def test_the_page_on_visual_tokens_runs():
    model, inputs = llava(), prompt((1, 2))
    found = run("docs/how-to/visual-tokens.md", model=model, inputs=inputs, encoder=model.model.vision_tower)
    assert found["states"].shape[:2] == (3, 65)


def test_the_page_on_plans_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = run("docs/how-to/plans.md", model=llava(), inputs=prompt((1, 2)), batches=[prompt((1, 1))])
    assert 0 < found["cost"].share < 1


def test_the_reference_names_every_public_name():
    page = _hooks().on_page_markdown((DOCS / "reference/index.md").read_text())
    missing = [n for n in ts.__all__ if not n.startswith("__") and f"| `ts.{n}` |" not in page]
    assert missing == []


def test_the_page_on_encoders_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = run("docs/how-to/encoders.md", folder=tmp_path / "head")
    assert found["fewer"].lengths.tolist() == [(n + 1) // 2 for n in found["documents"].lengths.tolist()]
    assert found["again"].identity.dim == 128
    assert [hit.id for hit in found["hits"]] == ["open"]


def test_the_page_on_tokenizers_runs():
    try:
        found = run("docs/how-to/codec.md")
        assert found["ids"].shape == (2, 256)
        assert found["Means"]().decode(found["Means"]().encode(torch.rand(1, 3, 64, 64))).shape == (1, 3, 64, 64)
    finally:
        QUANTIZERS.forget("ternary")


def test_the_page_on_prompts_runs(forget, tmp_path, monkeypatch):
    pytest.importorskip("sentencex")
    monkeypatch.chdir(tmp_path)
    batches = [(torch.randint(1, 50, (2, 24)), torch.randint(1, 50, (2, 6)))]
    passages = [
        "Nothing happens here. It is quiet.",
        "The server uses port 8417. Clients wait for it.",
        "Roses grow. It rains.",
    ]
    found = run("docs/how-to/prompts.md", tokenizer=lm.path(), passages=passages, llm=decoder(), batches=batches)
    assert found["passage"] == 1
    assert found["answer"].shape == (2, 5)
    assert "Roses grow." in "".join(found["dropped"])
    assert found["share"] < 0.6
    forget.append("longest-first")
    check_prompt_method("longest-first")


def test_the_page_on_diffusers_runs():
    pytest.importorskip("diffusers")
    from tokensieve.testbed.diffusion import pipeline

    found = run("docs/how-to/diffusion.md", pipe=pipeline.load(), prompt=[0])
    assert found["heat"].shape[1:] == (8, 8)


def test_the_page_on_retrieval_runs(tmp_path):
    found = run("docs/how-to/retrieval.md", folder=tmp_path / "my.index")
    assert found["hit"].document == "note"
    assert found["hit"].highlights


def test_the_page_on_the_cache_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    inputs = text(180, 200)
    question = {k: torch.cat([v, torch.ones(2, 3, dtype=torch.long)], 1) for k, v in inputs.items()}
    found = run("docs/how-to/cache.md", llm=decoder(), inputs=inputs, question=question)
    assert found["answer"].shape == (2, 220)
    assert found["held"].get_seq_length() == 203 + 19


def test_the_page_of_advise(tmp_path, monkeypatch, capsys):
    subject, lines = fake_subject(), []
    subject.processor = TalkingProcessor()
    for i in range(28):
        Image.effect_noise((40, 40), 90).convert("RGB").save(tmp_path / f"{i}.png")
        asked = Question("", "what ?", ("",), (tmp_path / f"{i}.png",))
        inputs = QuestionPrompts(subject).inputs([asked])
        said = subject.texts(inputs, subject.ask(inputs, 3))[0]
        lines.append(json.dumps({"image": f"{i}.png", "question": "what ?", "answer": said}))
    (tmp_path / "q.jsonl").write_text("\n".join(lines))
    monkeypatch.setattr("tokensieve.planner.advise._load", lambda asked: subject)
    limits = {"out": tmp_path, "new_tokens": 3, "sites": ["handoff"], "methods": ["visionzip"], "keep": [0.5]}
    found = {"questions": tmp_path / "q.jsonl", "limits": limits, "model": llava(), "inputs": prompt((1, 2))}
    assert str(run("docs/how-to/advise.md", **found)["advice"]) in capsys.readouterr().out


def test_the_page_on_benches_runs():
    found = run("docs/how-to/bench.md", llm=decoder(), inputs=text(60))
    assert found["difference"].distinguishable
    assert found["sizes"]["keydiff"] < ts.cache_bytes(found["made"].cache)


def test_the_page_on_harnesses_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = run("docs/how-to/harnesses.md")
    assert len((tmp_path / "facts.jsonl").read_text().splitlines()) == 40
    assert [s.plan for s in ts.attached(found["model"])] == [ts.Plan.load("model")]
    for name in ("snapkv", "keydiff", "random", "quarter", "stairs", "chance"):
        assert ts.Plan.load(f"{name}.json").stages


@pytest.mark.parametrize("page", ["report", "audit", "train", "extend", "transplant"])
def test_the_pages_on_tokenizers_run(tmp_path, page):
    (tmp_path / "note.txt").write_text("a file of many words, and more of the words of a file\n" * 60)
    made = trained()
    made.save(tmp_path / "other")
    text = ["a file of many words, and more of the words of a file\n" * 60] * 3
    given = {
        "tokenizer": made.tokenizer,
        "other": tmp_path / "other",
        "texts": text,
        "held": text[:1],
        "out": tmp_path / "out",
    }
    folder = tmp_path if page in ("report", "train") else lm.path()
    if page == "train":
        folder = tmp_path / "corpus"
        folder.mkdir()
        for document in corpus(20_000).documents:
            (folder / document.name).write_text(document.text)
    found = run(f"docs/how-to/tokenizer-{page}.md", folder=folder, **given)
    assert "open_tokenizer" in found or "read" in found
    if page == "transplant":
        INITS.forget("nearest-part")


def test_the_page_on_bytes_runs():
    model, tokenizer = lm.load()
    found = run("docs/how-to/bytes.md", model=model, tokenizer=tokenizer, other=model, other_tokenizer=tokenizer)
    assert found["answer"].startswith(b"rn")
    assert found["bits"] > 0


def test_the_page_on_words_runs():
    found = run("docs/how-to/words.md", tokenizer=trained().tokenizer, texts=[d.text for d in corpus(8_000).documents])
    assert found["shares"]["one"] > 0.9


def test_pages_call_things_by_their_names():
    rooms = {p.parent.name for p in (ROOT / "tokensieve").glob("*/__init__.py")}
    for page in (ROOT / "README.md", *PAGES):
        for name in set(re.findall(r"`(tokensieve(?:\.\w+)+)(?:\([^`]*\))?`", page.read_text())) - {PLUGINS}:
            assert pkgutil.resolve_name(name) is not None, f"{page.name}: {name}"
        unknown = set(re.findall(r"\bts\.(\w+)", page.read_text())) - set(ts.__all__) - rooms
        assert not unknown, f"{page.name}: {sorted(unknown)}"


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    told = re.sub(r"```.*?```|`[^`]*`", "", page.read_text(), flags=re.S)
    for target, anchor in re.findall(r"\]\((?!\w+:)([^)#\s]*)(?:#([^)\s]+))?\)", told):
        other = (page.parent / target).resolve() if target else page
        assert other.exists(), f"{page.name}: {target}"
        if anchor:
            heads = re.findall(r"^#+ (.+)$", other.read_text(), re.M)
            slugs = [re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", h).strip().lower()) for h in heads]
            assert anchor in slugs, f"{page.name}: {target}#{anchor}"


def test_every_page_is_in_the_navigation_and_old_addresses_lead_to_pages():
    listed = set(re.findall(r"([\w/-]+\.md)\b", (ROOT / "mkdocs.yml").read_text()))
    assert listed == {str(p.relative_to(DOCS)) for p in PAGES}
    assert {f"{new}.md" for new in _hooks().MOVED.values()} <= listed


def test_pages_are_written_where_pages_are():
    written = set()
    for source in (ROOT / "benchmarks").rglob("*.py"):
        written |= set(re.findall(r"\bdocs/[\w/-]+\.md\b", source.read_text()))
    assert {str(Path(page).parent) for page in written} <= {"docs/how-to", "docs/measured"}


def test_nobody_is_told_to_install_from_an_index():
    files = [ROOT / "README.md", *PAGES, *(ROOT / "tokensieve").rglob("*.py")]
    assert [f.name for f in files if re.search(r"pip install '?tokensieve", f.read_text())] == []


def test_the_readme_is_short_and_its_table_too():
    told = (ROOT / "README.md").read_text()
    assert told.count("\n") < 150
    assert told.count("```python") == 1
    rows = re.findall(r"^\| (?!---|method)", told.split("<!-- demo -->")[1].split("<!-- /demo -->")[0], re.M)
    assert len(rows) <= readme.ROWS == 8


def test_troubleshooting_shows_what_is_printed(tmp_path):
    page = _hooks().on_page_markdown((DOCS / "troubleshooting.md").read_text())
    model, llm, inputs, x = llava(), decoder(), text(180, 200), torch.randn(2, 180, 16)

    def under(name: str, given: dict[str, Any], of: Any = None, new: int = 2, **stage: Any) -> Any:
        with ts.sieve(of or llm, name, **stage):
            return (of or llm).generate(**given, max_new_tokens=new, return_dict_in_generate=True).past_key_values

    cache = under("snapkv", inputs, keep=0.5)
    longer = {k: torch.cat([v, torch.ones(2, 5, dtype=torch.long)], 1) for k, v in inputs.items()}
    index = ts.Index.create(tmp_path / "a", 8)
    index.add([torch.randn(3, 8)], ids=["a"])
    tried = (
        lambda: ts.get_method("visionzipp"),
        lambda: ts.get_method("snapkv", windows=3),
        lambda: ts.get_method("snapkv", kernel=4),
        lambda: ts.Stage("visionzip", keep=5, site="cache"),
        lambda: ts.reduce(x, "visionzip", keep=64),
        lambda: under("idf", prompt((1, 1)), model, keep=4),
        lambda: ts.reduce(x, "divprune", keep=0),
        lambda: ts.Keep(),
        lambda: under("snapkv", inputs, keep=4),
        lambda: ts.Stage("snapkv", keep=5, positions="compact"),
        lambda: ts.Stage("snapkv", keep=5, prefill=False),
        lambda: ts.Stage("fastv", keep=5, layers=(1, 2)),
        lambda: under("visionzip", inputs, keep=4),
        lambda: under("visionzip", inputs, torch.nn.Linear(2, 2), keep=4),
        lambda: under("snapkv", {k: v.flip(1) for k, v in inputs.items()}, keep=0.5),
        lambda: ts.reduce(x * torch.nan, "divprune", keep=5),
        lambda: llm.generate(**longer, past_key_values=cache, max_new_tokens=2),
        lambda: under_nothing(decoder(seed=3), longer, cache),
        lambda: under("snapkv", {**inputs, "cache_implementation": "static"}, keep=0.5),
        lambda: under(
            "snapkv", {k: v[:1] for k, v in inputs.items()} | {"prompt_lookup_num_tokens": 2}, None, 8, keep=0.5
        ),
        lambda: ts.Index.create(tmp_path / "b", 8, codec="int5"),
        lambda: index.add([torch.randn(3, 9)]),
        lambda: index.add([torch.randn(3, 8)], ids=["a"]),
        lambda: index.search(torch.randn(2, 8), where={"a": {"like": 3}}),
        lambda: index.add([torch.randn(0, 8)], ids=["e"]),
    )
    said = set()
    for does in tried:
        with pytest.raises((ValueError, RuntimeError)) as problem:
            does()
        assert f"\n{problem.value}\n```" in page, str(problem.value)
        said.add(str(problem.value))
    index.close()
    shown = set(re.findall(r"^```\n(?!error:)(.+)\n```", page, re.M))
    assert {m for m in shown - said if "pip install" not in m} == set()


def under_nothing(model: Any, inputs: dict[str, Any], cache: Any) -> None:
    with ts.sieve(model, ts.Plan([])):
        model.generate(**inputs, past_key_values=cache, max_new_tokens=2)


def test_the_arithmetic_of_a_hundred_million_documents_holds():
    page = (ROOT / "docs/measured/scale.md").read_text()
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


def _hooks() -> Any:
    spec = importlib.util.spec_from_file_location("hooks", DOCS / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_of_the_command_line_tells_of_every_command():
    page = _hooks().commands()
    for command in app.registered_commands:
        name = command.name or command.callback.__name__.strip("_").replace("_", "-")
        assert f"\n## {name}\n" in f"\n{page}"
    assert "| `--seed` | int | `0` | For methods that draw, and for the choice of questions. |" in page
    assert "| `--json, --no-json` |  |  | Print JSON only. |" in page
    assert "tokensieve search AT QUERY [OPTIONS]" in page


def test_the_page_of_faster_encoders_runs():
    found = run("docs/how-to/encoder-speed.md")
    assert found["s"].frames == (29, 50)
    assert found["states"].shape == (2, 65, 32)
