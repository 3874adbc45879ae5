"""The house: which part of the package may import which, and how long its files may be.

Floors are written from below; a module imports from its own floor and from those under it. Imports inside functions count, those
for types alone (``TYPE_CHECKING``) do not. Whoever makes a new folder names its floor here.
"""

import ast
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

import tokensieve

PACKAGE = Path(tokensieve.__file__).parent
NAME = PACKAGE.name

CHAPTERS = ("codec", "retrieval", "text")
FLOORS = (
    ("core", "extras", "_moved"), ("parts",), ("methods",), ("sites",), ("nn",), CHAPTERS, ("prompt",), ("testbed",), ("bench",),
    ("planner",), ("catalog",), ("integrations",), ("testing",), ("cli", "__main__"),
)  # fmt: skip
INSIDE = {
    "sites": (
        ("model",),
        ("cache",),
        ("encoder",),
        ("visual",),
        ("prompt",),
        ("diffusion",),
        ("table", "cost"),
        ("sieve", "subtokens"),
        ("loading",),
    ),
}
"""Floors inside a folder, likewise."""

CORE_IMPORTS = {"torch", "numpy", "safetensors"}
MODELS = {"transformers", "huggingface_hub", "diffusers"}
KNOW_MODELS = ("sites", "testbed", "bench", "retrieval.encoders", "text.models", "integrations")

EXCEPTIONS = {
    ("tokensieve.testing.doctor_models", "transformers"): "the doctor loads the model that a user names",
}
"""(importing, imported) modules that break a rule above, and why."""

LINES = 300
LONG: dict[str, str] = {}
"""Files of more lines, and why they are one idea all the same."""


def module(path: Path, package: Path) -> str:
    parts = path.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def typing_only(tree: ast.Module) -> set[ast.AST]:
    """What stands under ``if TYPE_CHECKING``."""
    guards = [n for n in ast.walk(tree) if isinstance(n, ast.If) and ast.unparse(n.test).endswith("TYPE_CHECKING")]
    return {inner for guard in guards for statement in guard.body for inner in ast.walk(statement)}


def imported(path: Path, package: Path, known: set[str]) -> Iterator[str]:
    """The modules that a file imports: a name taken from a package is that of a module where there is one."""
    tree = ast.parse(path.read_text())
    aside, here = typing_only(tree), module(path, package)
    for node in ast.walk(tree):
        if node in aside:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                up = here.split(".") if path.name == "__init__.py" else here.split(".")[:-1]
                base = ".".join([*up[: len(up) - node.level + 1], *filter(None, [node.module])])
            names = [f"{base}.{alias.name}" for alias in node.names]
            yield from (name if name in known else base for name in names)


def graph(package: Path) -> dict[str, set[str]]:
    """For each module of a package what it imports, of the package or not."""
    paths = {module(path, package): path for path in sorted(package.rglob("*.py"))}
    return {name: set(imported(path, package, set(paths))) for name, path in paths.items()}


def arrows(graph: dict[str, set[str]]) -> Iterator[tuple[str, str]]:
    """The imports within a package whose root is the shortest name, but for those of the exceptions."""
    for name, others in graph.items():
        yield from ((name, other) for other in sorted(others) if other in graph and (name, other) not in EXCEPTIONS)


def floor(name: str, floors: tuple[tuple[str, ...], ...]) -> int:
    """The floor of a module, told by one part of its name.

    Raises:
        ValueError: it stands on none.
    """
    found = [i for i, rooms in enumerate(floors) if name in rooms]
    if len(found) != 1:
        raise ValueError(f"{name!r} stands on no floor; name the one it is of in {Path(__file__).name}")
    return found[0]


def upward(graph: dict[str, set[str]]) -> list[str]:
    """Imports from a floor above. The package itself stands over all but those that use it as a user does."""
    out = []
    for name, other in arrows(graph):
        own, theirs = name.split("."), other.split(".")
        if len(own) == 1:
            continue
        if len(theirs) == 1:
            climbs = own[1] not in ("integrations", "testing", "cli")
        elif own[1] != theirs[1]:
            climbs = floor(theirs[1], FLOORS) > floor(own[1], FLOORS)
        else:
            inside = INSIDE.get(own[1])
            climbs = (
                inside is not None
                and len(own) > 2
                and (len(theirs) == 2 or floor(theirs[2], inside) > floor(own[2], inside))
            )
        if climbs:
            out.append(f"{name} imports {other}, which stands above it")
    return out


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Modules that reach themselves, each circle once."""
    ahead: dict[str, list[str]] = {name: [] for name in graph}
    for name, other in arrows(graph):
        ahead[name].append(other)
    done: set[str] = set()
    out = []

    def walk(name: str, way: list[str]) -> None:
        if name in way:
            out.append([*way[way.index(name) :], name])
        elif name not in done:
            for other in ahead[name]:
                walk(other, [*way, name])
            done.add(name)

    for name in graph:
        walk(name, [])
    return out


def folders(graph: dict[str, set[str]], inside: str) -> dict[str, set[str]]:
    """The graph of the folders, and files, right inside one."""
    start, depth = f"{NAME}.{inside}.", inside.count(".") + 3
    out: dict[str, set[str]] = {}
    for name, other in arrows(graph):
        if name.startswith(start) and other.startswith(start):
            own, theirs = (".".join(n.split(".")[:depth]) for n in (name, other))
            out.setdefault(own, set()).update({theirs} - {own})
            out.setdefault(theirs, set())
    return out


def between_chapters(graph: dict[str, set[str]]) -> list[str]:
    rooms = [(a.split(".")[1:2], b.split(".")[1:2], a, b) for a, b in arrows(graph)]
    return [
        f"{a} imports {b}, of another chapter"
        for own, other, a, b in rooms
        if own != other and {*own, *other} <= set(CHAPTERS) and own and other
    ]


def outside(graph: dict[str, set[str]]) -> Iterator[tuple[str, str]]:
    """Imports of other packages, by the name of the package, without Python's own."""
    for name, others in graph.items():
        for other in sorted({o.split(".")[0] for o in others} - {NAME} - sys.stdlib_module_names):
            if (name, other) not in EXCEPTIONS:
                yield name, other


def within(name: str, rooms: Iterable[str]) -> bool:
    return any(name == f"{NAME}.{room}" or name.startswith(f"{NAME}.{room}.") for room in rooms)


@pytest.fixture(scope="module")
def house():
    return graph(PACKAGE)


def test_imports_run_downwards(house):
    assert upward(house) == []


def test_no_module_reaches_itself(house):
    assert circles(house) == []


@pytest.mark.parametrize("inside", ["sites", "retrieval", "text"])
def test_no_folder_reaches_itself(house, inside):
    assert circles(folders(house, inside)) == []


def test_no_chapter_imports_another(house):
    assert between_chapters(house) == []


def test_the_core_needs_little(house):
    assert {(n, o) for n, o in outside(house) if within(n, ["core"])} <= {(n, o) for n in house for o in CORE_IMPORTS}


def test_only_some_know_models(house):
    assert [(n, o) for n, o in outside(house) if o in MODELS and not within(n, KNOW_MODELS)] == []


def test_files_are_short():
    lengths = {str(p.relative_to(PACKAGE)): len(p.read_text().splitlines()) for p in PACKAGE.rglob("*.py")}
    assert {name for name, length in lengths.items() if length > LINES} == set(LONG)


def test_every_exception_is_needed(house):
    """One that nothing needs any more would hide the next of its kind."""
    plain = {(name, other) for name, others in house.items() for other in {*others, *(o.split(".")[0] for o in others)}}
    assert set(EXCEPTIONS) <= plain
    assert all(EXCEPTIONS.values())
    assert all(LONG.values())


# ---- the walk itself ----------------------------------------------------------------------------------------------------


def build(root: Path, files: dict[str, str]) -> dict[str, set[str]]:
    """The graph of a package made of these files."""
    package = root / NAME
    for name, text in files.items():
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        for folder in path.relative_to(package).parents:
            (package / folder / "__init__.py").touch()
    return graph(package)


def test_upward_arrows_are_seen_wherever_they_stand(tmp_path):
    house = build(
        tmp_path,
        {
            "core/a.py": "def f():\n    from tokensieve.methods import b\n",
            "methods/b.py": "import tokensieve.core.a\n",
            "parts/c.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from tokensieve.sites.cache import d\n",
            "sites/cache/d.py": "from ..visual.e import g\nfrom tokensieve.parts import c\n",
            "sites/visual/e.py": "import tokensieve\n",
        },
    )
    assert upward(house) == [
        "tokensieve.core.a imports tokensieve.methods.b, which stands above it",
        "tokensieve.sites.cache.d imports tokensieve.sites.visual.e, which stands above it",
        "tokensieve.sites.visual.e imports tokensieve, which stands above it",
    ]
    assert circles(house) == [["tokensieve.core.a", "tokensieve.methods.b", "tokensieve.core.a"]]


def test_a_room_on_no_floor_is_refused(tmp_path):
    house = build(tmp_path, {"attic/a.py": "from tokensieve.core import b\n", "core/b.py": ""})
    with pytest.raises(ValueError, match="'attic' stands on no floor"):
        upward(house)


def test_circles_of_folders_are_seen(tmp_path):
    """No module of these reaches itself."""
    house = build(
        tmp_path,
        {
            "retrieval/index/a.py": "from tokensieve.retrieval.storage.b import x\n",
            "retrieval/storage/b.py": "",
            "retrieval/storage/c.py": "from tokensieve.retrieval.index import d\n",
            "retrieval/index/d.py": "import torch\n",
        },
    )
    assert circles(house) == []
    assert [sorted(set(c)) for c in circles(folders(house, "retrieval"))] == [
        ["tokensieve.retrieval.index", "tokensieve.retrieval.storage"]
    ]
    assert list(outside(house)) == [("tokensieve.retrieval.index.d", "torch")]


def test_chapters_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "CHAPTERS", ("retrieval", "text"))
    files = {"retrieval/a.py": "from tokensieve.text import b\nfrom tokensieve.retrieval import c\n"}
    house = build(tmp_path, files | {"text/b.py": "", "retrieval/c.py": ""})
    assert between_chapters(house) == ["tokensieve.retrieval.a imports tokensieve.text.b, of another chapter"]


TWICE = {
    "Document": "the service's models are what an index takes and gives, as JSON; clients know them by these names",
    "Hit": "the same",
    "Match": "the same",
    "Passage": "the same",
}
"""Class names that occur twice where one is allowed, and why."""


def test_class_names_occur_once():
    """In each chapter, and in all that chapters stand on or that stands on them."""
    found: dict[tuple[str, str], list[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        home = module(path, PACKAGE)
        subject = next((chapter for chapter in CHAPTERS if home.startswith(f"{NAME}.{chapter}.")), "")
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef):
                found.setdefault((subject, node.name), []).append(home)
    assert {name: homes for (_, name), homes in found.items() if len(homes) > 1 and name not in TWICE} == {}
