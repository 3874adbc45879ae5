"""Trained heads for stored vectors: definitions as plain loops, gradients, padding, batches, and what is saved."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch.nn.functional import normalize, softplus

from benchmarks.reference.poly_encoder_188 import PolyEncoder
from tokensieve.core.method_registry import get_method
from tokensieve.retrieval.encoders import head as encode_head
from tokensieve.retrieval.encoders.encoded import Encoded, Precomputed, ends
from tokensieve.retrieval.encoders.head import Headed, through
from tokensieve.retrieval.encoders.loading import load_encoder
from tokensieve.retrieval.heads.colberter import ColBERTer, lexical, word_means
from tokensieve.retrieval.heads.contrast import batches, chamfer, fit, in_batch, pad
from tokensieve.retrieval.heads.crisp import Crisp, reduced
from tokensieve.retrieval.heads.projection import FORMS, Projection, flow
from tokensieve.retrieval.index.library import Library
from tokensieve.retrieval.index.recipe import Recipe
from tokensieve.retrieval.scoring.maxsim import maxsim
from tokensieve.retrieval.scoring.ragged import Ragged
from tokensieve.retrieval.sources.folder import Text


def ragged(lengths, width=8, seed=0):
    draw = torch.Generator().manual_seed(seed)
    offsets = ends(torch.tensor(lengths))
    return normalize(torch.randn(int(offsets[-1]), width, generator=draw), dim=-1), offsets


def encoded(lengths, width=8, seed=0):
    vectors, offsets = ragged(lengths, width, seed)
    words = torch.cat([torch.tensor([-1, *range(n - 2), -1][:n]) for n in lengths])
    spans = torch.arange(len(vectors))[:, None].expand(-1, 2).contiguous()
    return Encoded(vectors, offsets, spans, {"word": words}, normalize(torch.ones(len(lengths), width), dim=-1))


# ---- contrast


def test_chamfer_is_the_mean_of_best_matches_and_leaves_gradients_to_winners():
    (q, qo), (d, do) = ragged([3, 1, 4]), ragged([5, 2, 7], seed=1)
    q.requires_grad_()
    d.requires_grad_()
    scores = chamfer(*pad(q, qo), *pad(d, do))
    plain = torch.stack(
        [torch.stack([(a @ b.T).amax(1).mean() for b in d.split([5, 2, 7])]) for a in q.split([3, 1, 4])]
    )
    assert torch.allclose(scores, plain, atol=1e-6)
    ours = torch.autograd.grad(in_batch(scores), [q, d], retain_graph=True)
    theirs = torch.autograd.grad(in_batch(plain), [q, d])
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(ours, theirs, strict=True))
    assert torch.allclose(
        scores * torch.tensor([[3], [1], [4]]),
        maxsim([x.detach() for x in q.split([3, 1, 4])], Ragged(d.detach(), do)),
        atol=1e-5,
    )


def test_the_loss_is_cross_entropy_of_own_documents():
    scores = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    each = [-(scores[i, i] / 0.1 - (scores[i] / 0.1).exp().sum().log()) for i in range(4)]
    assert in_batch(scores, 0.1).item() == pytest.approx(sum(each).item() / 4, abs=1e-5)
    with pytest.raises(ValueError, match="one document for each query"):
        in_batch(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="temperature=0"):
        in_batch(scores, 0)
    with pytest.raises(ValueError, match="document 1 has no vectors"):
        chamfer(torch.ones(1, 1, 2), torch.ones(1, 1) > 0, torch.ones(2, 1, 2), torch.tensor([[True], [False]]))


def test_batches_hold_each_example_once_a_round():
    drawn = batches(10, 5, seed=1)
    assert sorted(torch.cat([next(drawn), next(drawn)]).tolist()) == list(range(10))
    assert len(next(batches(3, 32, seed=1))) == 3


def test_training_repeats_under_a_seed_and_learns():
    data = ragged([1] * 16)[0]
    ends_ = []
    for _ in range(2):
        torch.manual_seed(0)
        head = Projection(8, 4)
        losses = fit(
            [head],
            lambda i, h=head: in_batch(normalize(h(data[i]), dim=-1) @ normalize(h(data[i]), dim=-1).T),
            16,
            steps=30,
        )
        assert losses[-1] < losses[0]
        ends_.append(head.last.weight.detach().clone())
    assert torch.equal(*ends_)


# ---- heads


@pytest.mark.parametrize("form", FORMS)
def test_projections_are_what_they_say(form):
    torch.manual_seed(0)
    head = Projection(8, 4, form)
    x = torch.randn(3, 8)
    w = {k: v.detach() for k, v in head.state_dict().items()}

    def gelu(v):
        return torch.tensor([z * 0.5 * (1 + math.erf(z / 2**0.5)) for z in v.tolist()])

    for row, made in zip(x, head(x), strict=True):
        y = row * 8**0.5
        if form == "linear":
            plain = w["last.weight"] @ y
        elif form == "glu":
            plain = w["last.weight"] @ (gelu(w["gate.weight"] @ y) * (w["first.weight"] @ y))
        elif form == "feedforward":
            plain = w["last.weight"] @ gelu(w["first.weight"] @ y)
        else:
            inner = gelu(w["first.weight"] @ y) + w["skip.weight"] @ y
            plain = w["last.weight"] @ inner + w["past.weight"] @ inner
        assert torch.allclose(made, plain, atol=1e-4)
    assert Projection(**head.settings).load_state_dict(head.state_dict())


def test_only_matched_tokens_receive_gradient():
    (q, qo), (d, do) = ragged([2]), ragged([6], seed=1)
    head = Projection(8, 4)
    with torch.no_grad():
        asked = normalize(head(q), dim=-1)
        winners = set((asked @ normalize(head(d), dim=-1).T).argmax(1).tolist())
    behind, before = flow(head, d, lambda y: -chamfer(*pad(asked, qo), *pad(normalize(y, dim=-1), do)).sum())
    assert set(behind.nonzero()[:, 0].tolist()) == winners == set(before.nonzero()[:, 0].tolist())


def test_centroids_are_means_and_their_gradients_reach_all_members():
    x, offsets = ragged([9, 4, 12])
    x.requires_grad_()
    made, place, cuts = reduced(x, offsets, get_method("kmeans"), 0.25)
    assert cuts.diff().tolist() == [2, 1, 3]
    assert torch.allclose(made[2], normalize(x[9:13].mean(0), dim=0), atol=1e-5)
    assert 9 <= int(place[2]) < 13
    (grad,) = torch.autograd.grad((made * torch.randn_like(made)).sum(), x)
    assert bool((grad.norm(dim=1) > 0).all())


def test_crisp_reads_both_sides_by_their_own_share():
    head = Crisp(Projection(8, 4), keep=0.5, query_keep=1.0)
    some = encoded([6, 10])
    assert through(head, some, False).lengths.tolist() == [3, 5]
    assert through(head, some, True).lengths.tolist() == [6, 10]
    with pytest.raises(ValueError, match="needs more than stored vectors"):
        Crisp(Projection(8, 4), method="idf")


# ---- ColBERTer


def test_words_are_means_of_their_tokens_in_each_text():
    x, offsets = ragged([5, 3, 2])
    words = torch.tensor([-1, 4, 0, 4, -1, 0, 0, 7, -1, -1])
    made, place, cuts = word_means(x, offsets, words)
    plain = [x[[1, 3]].mean(0), x[2], x[[5, 6]].mean(0), x[7], x[[8, 9]].mean(0)]
    assert torch.allclose(made, torch.stack(plain), atol=1e-6)
    assert place.tolist() == [1, 2, 5, 7, 8]
    assert cuts.tolist() == [0, 2, 4, 5]


def test_closed_gates_remove_words_of_documents_only():
    torch.manual_seed(0)
    head, some = ColBERTer(8, 4), encoded([7, 5, 3])
    assert through(head, some, False).lengths.tolist() == [5, 3, 1]
    with torch.no_grad():
        head.gate.weight.copy_(torch.randn(1, 4) * 5)
        head.gate.bias.zero_()
    made = through(head, some, False)
    x, _, _ = word_means(head.compress(some.vectors), some.offsets, some.signals["word"])
    gates = (x @ head.gate.weight[0]).relu()
    assert int((gates == 0).sum()) > 0
    stays = gates > 0
    for start in (0, 5, 8):
        stays[start] |= not bool(stays[start : start + {0: 5, 5: 3, 8: 1}[start]].any())
    assert torch.allclose(made.vectors, (x * gates[:, None])[stays], atol=1e-5)
    assert through(head, some, True).lengths.tolist() == [5, 3, 1]
    with torch.no_grad():
        head.gate.bias.fill_(-99)
    assert through(head, some, False).lengths.tolist() == [1, 1, 1]


def test_exact_matches_are_products_of_numbers_of_equal_words():
    torch.manual_seed(0)
    head = ColBERTer(8, 4, exact=True)
    some = encoded([6, 4])
    made = through(head, some, False)
    assert made.vectors.shape[1] == head.out == 1
    x, _, _ = word_means(head.compress(some.vectors), some.offsets, some.signals["word"])
    assert torch.allclose(made.vectors, softplus(head.single(x)).detach(), atol=1e-5)
    table = lexical(made.vectors, made.signals["word"], made.offsets, 4)
    plain = [[sum(float(a * b) for a, i in zip(made[t], made.signals["word"][made.offsets[t]:], strict=False)
                  for b, j in zip(made[u], made.signals["word"][made.offsets[u]:], strict=False) if i == j)
              for u in range(2)] for t in range(2)]  # fmt: skip
    assert torch.allclose(table @ table.T, torch.tensor(plain), atol=1e-5)


def test_fused_scores_start_in_the_middle():
    assert torch.equal(ColBERTer(8, 4).fused(torch.tensor(1.0), torch.tensor(3.0)), torch.tensor([2.0]))


# ---- poly-encoder


def test_poly_scores_are_what_loops_give():
    torch.manual_seed(0)
    head = PolyEncoder(8, 8, codes=3, temperature=0.5)
    (x, xo), (y, yo) = ragged([4, 6]), ragged([2, 3, 1], seed=1)
    scores = head.score(head.summary(*pad(x, xo)), head.candidates(*pad(y, yo)))
    assert scores.shape == (3, 2)
    for c, one in enumerate(y.split([2, 3, 1])):
        candidate = normalize(head.candidate(one * 8**0.5).mean(0), dim=0)
        for t, text in enumerate(x.split([4, 6])):
            h = head.context(text * 8**0.5)
            codes = torch.stack(
                [sum(w * v for w, v in zip((h @ code).softmax(0), h, strict=True)) for code in head.codes]
            )
            mixed = sum(w * v for w, v in zip((codes @ candidate / 0.5).softmax(0), codes, strict=True))
            assert scores[c, t].item() == pytest.approx(float((normalize(mixed, dim=0) @ candidate).detach()), abs=1e-5)


def test_a_bi_encoder_compares_means():
    head = PolyEncoder(8, 8, codes=0)
    x, offsets = ragged([4, 6])
    stored = head.summary(*pad(x, offsets))
    assert stored.shape == (2, 1, 8)
    plain = normalize(head.context(x[:4] * 8**0.5).mean(0), dim=0)
    assert torch.allclose(stored[0, 0], plain, atol=1e-5)
    with pytest.raises(ValueError, match="codes=-1"):
        PolyEncoder(8, 8, codes=-1)


# ---- behind an encoder

HEADS = {
    "projection": lambda: Projection(384, 16, "residual"),
    "crisp": lambda: Crisp(Projection(384, 16), keep=0.5),
    "colberter": lambda: ColBERTer(384, 16),
}
TEXTS = ["Open a file and read it, line by line.", "Close a socket.", "Sort numbers; then print the numbers.", "x"]


@pytest.fixture(scope="module")
def minilm():
    return load_encoder()


@pytest.mark.parametrize("kind", HEADS)
def test_a_saved_head_is_an_encoder(kind, minilm, tmp_path):
    torch.manual_seed(0)
    made = Headed(minilm, HEADS[kind]())
    made.save(tmp_path / "head")
    again = load_encoder(tmp_path / "head")
    assert again.identity == made.identity != minilm.identity
    assert made.identity.dim == 16
    for mine, other in ((made.documents(TEXTS), again.documents(TEXTS)), (made.queries(TEXTS), again.queries(TEXTS))):
        assert torch.equal(mine.vectors, other.vectors)
        assert torch.equal(mine.spans, other.spans)
    # A text does not depend on its neighbours.
    alone = made.documents(TEXTS[2:3])
    assert torch.allclose(alone.vectors, made.documents(TEXTS)[2], atol=1e-5)
    other = HEADS[kind]()
    assert Headed(minilm, other).identity != made.identity


def test_an_index_takes_a_head_as_its_encoder(minilm, tmp_path):
    torch.manual_seed(0)
    Headed(minilm, Crisp(Projection(384, 32), keep=0.5)).save(tmp_path / "head")
    library = Library.create(tmp_path / "my.index", Recipe(encoder=str(tmp_path / "head")))
    library.put([Text(str(i), text) for i, text in enumerate(TEXTS)])
    library.close()
    hits = Library.open(tmp_path / "my.index").search("read a file line by line", 1)
    assert hits[0].document == "0"


def test_heads_of_other_encoders_are_refused(minilm, tmp_path):
    made = Headed(minilm, Projection(384, 16))
    made.save(tmp_path)
    arrays = Precomputed({"a": torch.ones(2, 384)})
    with pytest.raises(ValueError, match="was trained on minilm"):
        encode_head.load(tmp_path, arrays)
    with pytest.raises(ValueError, match="made for width=8"):
        Headed(arrays, Projection(8, 4))
    card = json.loads((tmp_path / "head.json").read_text())
    (tmp_path / "head.json").write_text(json.dumps(card | {"format": "other"}))
    with pytest.raises(ValueError, match="holds no head"):
        load_encoder(tmp_path)


def test_arrays_go_through_a_projection_without_words():
    arrays = Precomputed({"a": torch.randn(3, 8), "b": torch.randn(1, 8)}, {"q": torch.randn(2, 8)})
    made = Headed(arrays, Projection(8, 4))
    assert made.documents(["a", "b"]).vectors.shape == (4, 4)
    assert made.queries(["q"]).lengths.tolist() == [2]
    assert len(made.documents([])) == 0
    with pytest.raises(ValueError, match="signal 'word'"):
        Headed(arrays, ColBERTer(8, 4)).documents(["a"])
