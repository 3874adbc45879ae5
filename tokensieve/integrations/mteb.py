"""mteb over our index: its retrieval tasks, with vectors reduced, stored and searched as `tokensieve index` does.

A document is one entry, read to the encoder's own length, as mteb's models read it; nothing is cut into passages.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokensieve.extras import install
from tokensieve.retrieval.encoders.encoded import Encoder
from tokensieve.retrieval.encoders.loading import load_encoder
from tokensieve.retrieval.encoders.reduce import Frequencies
from tokensieve.retrieval.index.fusion import Fuse
from tokensieve.retrieval.index.library import Library
from tokensieve.retrieval.index.put import COMMIT, Row
from tokensieve.retrieval.index.recipe import Recipe

try:
    import mteb
    from mteb._create_dataloaders import create_dataloader
    from mteb.models.model_meta import ModelMeta
    from mteb.types import PromptType
except ImportError as error:
    raise ImportError(f"mteb cannot be imported ({error}); {install('mteb')}") from error

EXACT = Recipe(keep=1.0, codec="float32", sketch=None)
"""All vectors as they are, all of them scored."""


class IndexModel:
    """An index as a model of mteb (its ``SearchProtocol``).

    Args:
        recipe: how vectors are reduced and stored.
        encoder: by default the recipe's.
        rerank, fuse: see :meth:`IndexReader.search`.

    Example:
        >>> mteb.evaluate(IndexModel(Recipe(keep=0.5, codec="int4")), tasks)    # doctest: +SKIP
    """

    def __init__(
        self,
        recipe: Recipe | None = None,
        encoder: Encoder | None = None,
        rerank: int | None = None,
        fuse: Fuse = "none",
    ) -> None:
        self.recipe = recipe or Recipe()
        self.encoder = encoder or load_encoder(self.recipe.encoder)
        self.rerank, self.fuse = rerank, fuse
        self.library: Library | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    @property
    def mteb_model_meta(self) -> Any:
        """What mteb's results are named by."""
        how = f"{self.recipe.method}-{self.recipe.keep}-{self.recipe.codec}-{self.recipe.sketch}-{self.fuse}"
        about = {
            "name": f"tokensieve/{self.encoder.identity.name.replace('/', '-')}-{how}",
            "embed_dim": self.encoder.identity.dim,
        }
        return ModelMeta.create_empty(
            {**about, "revision": self.encoder.identity.digest[:12], "framework": ["PyTorch"]}
        )

    def index(
        self, corpus: Any, *, task_metadata: Any, hf_split: str, hf_subset: str, encode_kwargs: Any, num_proc: int | None = None,
        **_: Any,
    ) -> None:  # fmt: skip
        """Make an index of a corpus, in the place of what was indexed before."""
        self.close()
        self._folder = tempfile.TemporaryDirectory()
        self.library = Library.create(Path(self._folder.name) / "index", self.recipe, self.encoder)
        texts = _texts(corpus, task_metadata, PromptType.document, num_proc)
        rows = [
            Row(f"{id}#0", text, 0, {"document": id, "text": text, "span": [0, len(text)], "digest": "", "of": 1})
            for id, text in texts
        ]
        parts = [rows[start : start + COMMIT] for start in range(0, len(rows), COMMIT)]
        if self.recipe.counts:
            counts = Frequencies()
            for part in parts:
                counts.add(self.encoder.documents([row.said for row in part], ["idf"]))
            self.library.learn(counts)
        for part in parts:
            self.library._commit(part, lambda done: None)
        self.library.tune()

    def search(
        self, queries: Any, *, task_metadata: Any, hf_split: str, hf_subset: str, top_k: int, encode_kwargs: Any,
        top_ranked: Any = None, num_proc: int | None = None, **_: Any,
    ) -> dict[str, dict[str, float]]:  # fmt: skip
        """By query, the best documents and their scores; with ``top_ranked`` only those that it names.

        Raises:
            ValueError: nothing was indexed.
        """
        if self.library is None:
            raise ValueError("nothing is indexed yet; mteb calls index before search")
        asked = list(_texts(queries, task_metadata, PromptType.query, num_proc))
        encoded = self.encoder.queries([text for _, text in asked])
        out = {}
        for i, (id, text) in enumerate(asked):
            where = None if top_ranked is None else {"document": list(top_ranked.get(id, ()))}
            words = [text] if self.fuse != "none" else None
            (hits,) = self.library.hits([encoded[i]], top_k, where, self.rerank, words=words, fuse=self.fuse)
            out[id] = {h.id.removesuffix("#0"): h.score if h.fused is None else h.fused for h in hits}
        return out

    def close(self) -> None:
        """Let go of what was indexed."""
        if self.library is not None and self._folder is not None:
            self.library.close()
            self._folder.cleanup()
            self.library = self._folder = None


def compared(tasks: Iterable[Any], recipe: Recipe, fuse: Fuse = "none") -> list[dict[str, Any]]:
    """Each task's main score by all vectors in float32, all scored, and by a recipe; rows of ``task``, ``measure``, ``exact`` and
    ``recipe``, and the bytes of the vectors of each."""
    encoder = load_encoder(recipe.encoder)
    rows = []
    for task in tasks:
        row: dict[str, Any] = {"task": task.metadata.name, "measure": task.metadata.main_score}
        for name, model in (
            ("exact", IndexModel(replace(EXACT, encoder=recipe.encoder), encoder, 0)),
            ("recipe", IndexModel(recipe, encoder, fuse=fuse)),
        ):
            row[name] = _score(model, task)
            row[f"{name} bytes"] = model.library.size["vector_bytes"] if model.library else 0
            model.close()
        rows.append(row)
    return rows


def tasks_of(names: Sequence[str]) -> list[Any]:
    """Tasks by mteb's names.

    Raises:
        ValueError: mteb has none of a name, or it is no retrieval task.
    """
    try:
        found = [mteb.get_task(name) for name in names]
    except KeyError as problem:
        raise ValueError(f"mteb has no such task: {problem}") from problem
    other = [t.metadata.name for t in found if t.metadata.type not in ("Retrieval", "Reranking")]
    if other:
        raise ValueError(f"{other[0]} is no retrieval task; an index answers only those")
    return found


def _score(model: IndexModel, task: Any) -> float:
    result = mteb.evaluate(model, [task], cache=None, show_progress_bar=False)
    return float(result.task_results[0].get_score())


def _texts(rows: Any, task: Any, prompt: Any, num_proc: int | None) -> Iterable[tuple[str, str]]:
    """Ids and texts as mteb gives them to its own models: a document's title stands before its text."""
    loader = create_dataloader(rows, task_metadata=task, prompt_type=prompt, batch_size=64, num_proc=num_proc)
    texts = [text for batch in loader for text in batch["text"]]
    return zip(map(str, rows["id"]), texts, strict=True)
