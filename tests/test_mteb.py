"""mteb over our index: with all vectors in float32 its figures are those of mteb's own exact MaxSim."""

from __future__ import annotations

import pytest

mteb = pytest.importorskip("mteb")

from datasets import Dataset  # noqa: E402
from mteb.abstasks.retrieval import AbsTaskRetrieval  # noqa: E402
from mteb.abstasks.task_metadata import TaskMetadata  # noqa: E402
from mteb.similarity_functions import max_sim  # noqa: E402

from tests.shelf import Words  # noqa: E402
from tokensieve.integrations.mteb import EXACT, IndexModel, _texts, compared, tasks_of  # noqa: E402
from tokensieve.retrieval.encoders import loading  # noqa: E402
from tokensieve.retrieval.index.recipe import Recipe  # noqa: E402


class Local(AbsTaskRetrieval):
    metadata = TaskMetadata(
        name="Local", description="Words of a topic.", type="Retrieval", dataset={"path": "local", "revision": "1"},
        eval_langs=["eng-Latn"], main_score="ndcg_at_10", category="t2t", modalities=["text"], eval_splits=["test"],
    )  # fmt: skip

    def load_data(self, *_, **__):
        # Words of its own for each document, so that no two scores are alike; a query has some of two documents' and one more.
        corpus = [
            {"id": f"d {i}", "title": f"t{i}", "text": " ".join(f"w{i}x{j}" for j in range(9 + i % 4))}
            for i in range(40)
        ]
        queries = [{"id": f"q{i}", "text": f"w{i}x1 w{i}x2 w{i + 20}x3 other{i}"} for i in range(15)]
        right = {f"q{i}": {f"d {i + 20 * (i % 2)}": 1, f"d {i + 1}": 1} for i in range(15)}
        self.dataset = {
            "default": {
                "test": {
                    "corpus": Dataset.from_list(corpus), "queries": Dataset.from_list(queries), "relevant_docs": right,
                    "top_ranked": None,
                }
            }
        }  # fmt: skip
        self.data_loaded = True


class Theirs(IndexModel):
    """The same vectors, scored by mteb's MaxSim."""

    def index(self, corpus, *, task_metadata, num_proc=None, **_):
        self.named = list(_texts(corpus, task_metadata, mteb.types.PromptType.document, num_proc))

    def search(self, queries, *, task_metadata, top_k, num_proc=None, **_):
        asked = list(_texts(queries, task_metadata, mteb.types.PromptType.query, num_proc))
        sides = [self.encoder.queries([t for _, t in asked]), self.encoder.documents([t for _, t in self.named])]
        scores = max_sim(*([side[i] for i in range(len(side))] for side in sides))
        best = scores.topk(min(top_k, len(self.named)))
        return {
            q: {self.named[j][0]: s for j, s in zip(places, values, strict=True)}
            for (q, _), places, values in zip(asked, best.indices.tolist(), best.values.tolist(), strict=True)
        }


def scores(model):
    result = mteb.evaluate(model, [Local()], cache=None, show_progress_bar=False).task_results[0]
    return {k: v for k, v in result.scores["test"][0].items() if isinstance(v, float)}


def test_exact_figures_are_mtebs_own():
    ours, theirs = scores(IndexModel(EXACT, Words(), 0)), scores(Theirs(EXACT, Words()))
    assert 0.1 < ours["ndcg_at_10"] < 0.99
    assert ours.keys() == theirs.keys()
    assert all(ours[k] == pytest.approx(theirs[k], abs=1e-6, nan_ok=True) for k in ours)


def test_candidates_of_a_reranking_task_alone_are_ranked():
    task, model = Local(), IndexModel(Recipe(keep=1.0, codec="float32"), Words())
    task.load_data()
    data = task.dataset["default"]["test"]
    given = {"task_metadata": task.metadata, "hf_split": "test", "hf_subset": "default", "encode_kwargs": {}}
    with pytest.raises(ValueError, match="nothing is indexed"):
        model.search(data["queries"], top_k=5, **given)
    model.index(data["corpus"], **given)
    found = model.search(data["queries"], top_k=5, top_ranked={"q0": ["d 3", "d 7"]}, **given)
    assert found["q0"].keys() == {"d 3", "d 7"}
    assert found["q1"] == {}
    at = model.library.folder
    model.close()
    assert not at.exists()


@pytest.mark.parametrize("recipe", [{"keep": 0.5, "codec": "int4"}, {"keep": 0.5, "method": "stopwords"}])
def test_a_recipe_stands_beside_exact_figures(monkeypatch, recipe):
    monkeypatch.setattr(loading, "load_encoder", lambda source=None, **_: Words())
    monkeypatch.setattr("tokensieve.integrations.mteb.load_encoder", lambda source=None, **_: Words())
    (row,) = compared([Local()], Recipe(**recipe), fuse="rrf")
    assert row["exact"] == pytest.approx(scores(IndexModel(EXACT, Words(), 0))["ndcg_at_10"])
    assert 0 < row["recipe"] <= 1
    assert row["recipe bytes"] < row["exact bytes"]


def test_other_tasks_are_refused():
    with pytest.raises(ValueError, match="no such task"):
        tasks_of(["NoSuchTask"])
    with pytest.raises(ValueError, match="is no retrieval task"):
        tasks_of(["Banking77Classification"])
