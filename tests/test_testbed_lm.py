"""The language-model testbed: its text, its tasks, its rival, its training, and what the packaged model can do."""

import json
import time

import numpy as np
import pytest
import torch

from tokensieve.testbed import lm
from tokensieve.testbed.lm import corpus, evaluate, tasks
from tokensieve.testbed.lm.ngram import KneserNey
from tokensieve.testbed.lm.train import PLAN, Lesson, collate, curriculum, train

SAY = tasks.Speech(np.arange(100, 160), (7, 8), (9,), (10, 7), 11, 12)
TEXT = np.arange(200, 2000)


@pytest.fixture(scope="module")
def packaged():
    return lm.load()


@pytest.fixture(scope="module")
def card():
    return json.loads((lm.path() / "training.json").read_text())


def rng(seed=0):
    return np.random.default_rng(seed)


def find(row, part):
    return [i for i in range(len(row) - len(part) + 1) if list(row[i : i + len(part)]) == list(part)]


@pytest.mark.parametrize("count", [1, 5, 16])
def test_facts_stand_once_in_the_context_and_their_answers_follow_their_questions(count):
    sample = lm.facts(rng(), SAY, TEXT, 600, count)
    assert len(sample.ids) == 600
    assert len(sample.answers) == len(sample.depths) == len(sample.made) == count
    context = sample.ids[: sample.context]
    for (start, end), depth in zip(sample.answers, sample.depths, strict=True):
        question = sample.ids[start - 5 : start]
        (at,) = find(context, question)
        assert list(context[at + 5 : at + 7]) == list(sample.ids[start:end])
        assert (at, at + 9) in sample.made
        room = sample.context - 9 * count
        before = sum(begin < at for begin, _ in sample.made)
        assert at - 9 * before == round(depth * room)
    outside = np.ones(sample.context, dtype=bool)
    for start, end in sample.made:
        outside[start:end] = False
    assert context[outside].tolist() == TEXT[: outside.sum()].tolist()  # the text goes on where a fact was put in


def test_labels_cover_answers_and_plain_text_and_nothing_else():
    sample = lm.facts(rng(3), SAY, TEXT, 400, 4)
    answers, text = sample.answer_labels(), sample.text_labels()
    assert not ((answers >= 0) & (text >= 0)).any()
    assert sorted(np.flatnonzero(answers >= 0) + 1) == sorted(i for a, b in sample.answers for i in range(a, b))
    for labels in (answers, text):
        on = np.flatnonzero(labels >= 0)
        assert labels[on].tolist() == sample.ids[on + 1].tolist()
    made = {i for a, b in sample.made for i in range(a, b)}
    predicted = set((np.flatnonzero(text >= 0) + 1).tolist())
    assert not predicted & made
    ends = {b for _, b in sample.made}  # what follows a fact is not predicted from it
    assert predicted == set(range(1, sample.context)) - made - ends


def test_depth_places_the_fact():
    for depth, at in ((0.0, 0), (0.5, (300 - 18) // 2), (1.0, 300 - 18)):
        assert lm.facts(rng(), SAY, TEXT, 300, 1, np.array([depth])).made == ((at, at + 9),)


def test_pairs_are_listed_once_and_asked_for_later():
    sample = lm.pairs(rng(1), SAY, 600, asked=20)
    rows = sample.ids.reshape(-1, 6)
    listed, again = rows[:80], rows[80:]
    assert sample.context == 480
    assert len({tuple(row[:2]) for row in listed}) == 80
    where = {tuple(row[:2]): i for i, row in enumerate(listed)}
    for row, (start, end), depth in zip(again, sample.answers, sample.depths, strict=True):
        at = where[tuple(row[:2])]
        assert sample.ids[start:end].tolist() == listed[at][3:5].tolist() == row[3:5].tolist()
        assert depth == pytest.approx((at + 0.5) / 80)


def test_copy_says_the_words_of_the_context_again():
    sample = lm.copy(rng(2), SAY, TEXT, 300, 20)
    ((start, end),) = sample.answers
    ((made, stop),) = sample.made
    assert end == len(sample.ids) == 300
    assert start == sample.context + 5
    assert sample.ids[made + 1 : stop].tolist() == sample.ids[sample.context + 1 :].tolist()


def test_samples_are_a_function_of_their_seed_and_index():
    ids = np.arange(100, 5000, dtype=np.uint16)
    lesson = Lesson(1, 256, 4, 1e-3, 0.1, 0.25, 0.25, 0.25, 0.25)
    one, again, other = (curriculum(lesson, SAY, ids, seed) for seed in (0, 0, 1))
    assert all(np.array_equal(one(i)[k], again(i)[k]) for i in range(20) for k in one(i))
    assert any(not np.array_equal(one(i)["ids"], other(i)["ids"]) for i in range(20))
    assert len({one(i)["ids"].tobytes() for i in range(20)}) == 20
    batch = collate([one(i) for i in range(8)])
    assert len({tuple(value.shape) for value in batch.values()}) == 1


def test_no_long_paragraph_is_in_both_splits():
    shared = "A paragraph that is long enough to be recognised when it comes back elsewhere."
    names = [f"m{i}.py" for i in range(200)]
    documents = [
        corpus.CorpusDocument("code", n, f"{shared}\n\n{n} has {'its own words ' * 20}\n\n  {shared} ") for n in names
    ]
    first, held = corpus.split(documents)
    assert first
    assert held
    assert {d.name for d in first}.isdisjoint(d.name for d in held)
    assert sum(d.text.count(shared) for d in first + held) == 1
    assert all(d.text.count("its own words") == 20 for d in first + held)
    again = corpus.split(reversed(documents))
    assert [d.name for d in again[0]] == [d.name for d in first]  # the order they come in does not matter
    assert again == (first, held)


def test_only_text_that_may_be_passed_on_is_held_out():
    for document in lm.held_out():
        assert corpus.is_held_out(document)
        assert document.kind in ("code", "guide") or "openssl" in document.name


def test_packaged_held_out_text_is_not_in_this_installations_training_text(card):
    if card["corpus"]["python"] != corpus.sysconfig.get_python_version():
        pytest.skip("another Python has other files")
    training, _ = corpus.split([*corpus.standard_library(), *corpus.guide()])
    whole = "\0".join(d.text for d in training)
    for document in lm.held_out():
        for paragraph in document.text.split("\n\n")[::7]:
            if len(" ".join(paragraph.split())) >= corpus.REPEAT:
                assert f"\n\n{paragraph}\n\n" not in whole, (document.name, paragraph)


def test_manual_pages_lose_their_typesetting_only():
    page = '.\\" a remark\n.TH LS 1\n.SH "NAME"\nls \\- list \\fIfiles\\fR\n.PP\n.BR ls (1)\nprints C:\\e\\(bu.\n'
    assert corpus.plain(page) == "NAME\n\nls - list files\n\nls (1)\nprints C:\\*.\n"


def test_ngram_probabilities_are_those_of_the_definition():
    ids = rng(5).integers(0, 6, 300)
    ids[100:160] = ids[20:80]
    model = KneserNey(ids, vocabulary=8, order=3)
    grams = {n: {} for n in (1, 2, 3)}
    for i in range(len(ids) - 2):
        gram = tuple(ids[i : i + 3].tolist())
        grams[3][gram] = grams[3].get(gram, 0) + 1
    for n in (2, 1):
        for gram in grams[n + 1]:
            grams[n][gram[1:]] = grams[n].get(gram[1:], 0) + 1
    discount = {}
    for n, table in grams.items():
        seen = [max(1, sum(c == k for c in table.values())) for k in (1, 2, 3, 4)]
        y = seen[0] / (seen[0] + 2 * seen[1])
        discount[n] = [0] + [min(max(k - (k + 1) * y * seen[k] / seen[k - 1], 0), k) for k in (1, 2, 3)]

    def probability(gram):
        n = len(gram)
        lower = probability(gram[1:]) if n > 1 else 1 / 8
        after = {g: c for g, c in grams[n].items() if g[:-1] == gram[:-1]}
        if not after:
            return lower
        count = grams[n].get(gram, 0)
        free = sum(discount[n][min(c, 3)] for c in after.values())
        return (count - discount[n][min(count, 3)] + free * lower) / sum(after.values())

    fresh = rng(6).integers(0, 8, 40)
    expected = [np.log2(probability(tuple(fresh[max(0, i - 2) : i + 1].tolist()))) for i in range(40)]
    np.testing.assert_allclose(model.log2(fresh), expected, rtol=1e-9)


def test_ngram_probabilities_sum_to_one():
    ids = rng(7).integers(0, 20, 500)
    model = KneserNey(ids, vocabulary=20)
    for history in ([3, 1, 4, 1], ids[40:44].tolist(), ids[90:94].tolist()):
        each = [2 ** model.log2(np.array([*history, token]))[-1] for token in range(20)]
        assert sum(each) == pytest.approx(1, abs=1e-9)


def test_untrained_model_already_repeats_what_followed_the_same_tokens(packaged):
    model, say = lm.build("cpu", seed=1).eval(), lm.speech(packaged[1])
    samples = [lm.pairs(rng(i), say, 240, asked=10) for i in range(8)]
    flags = np.array([f for row in lm.answered(model, samples, batch=8) for f in row])
    assert flags.mean() > 0.8  # by chance: one in 366 squared


def test_training_resumes_to_the_bit_and_depends_on_the_seed(tmp_path, packaged):
    files = tmp_path / "corpus"
    files.mkdir()
    packaged[1].backend_tokenizer.save(str(files / "tokenizer.json"))
    np.save(files / "train.npy", evaluate.stream(packaged[1], "guide").astype(np.uint16))
    plan = {"recall": Lesson(4, 128, 2, 1e-3, 0.1, 0.4, 0.2, 0.2, 0.2)}

    def run(name, **kwargs):
        return train(files, tmp_path / name, "micro", plan=plan, watch=False, **kwargs)[0].state_dict()

    whole = run("whole")
    run("parts", stop_at=2)
    parts, other = run("parts"), run("other", seed=1)
    assert all(torch.equal(whole[k], parts[k]) for k in whole)
    assert any(not torch.equal(whole[k], other[k]) for k in whole)


def test_lessons_grow_up_to_the_longest_context():
    lengths = [lesson.length for lesson in PLAN.values()]
    longest = lengths.index(lm.LENGTH)
    assert lengths[: longest + 1] == sorted(lengths[: longest + 1])
    assert max(lengths) == lm.LENGTH


def test_reading_a_context_first_equals_reading_at_once(packaged):
    model, tokenizer = packaged
    ids = evaluate.stream(tokenizer, "code")[:600].reshape(3, 200)
    with torch.no_grad():
        at_once = model(torch.from_numpy(ids)).logits[:, 149:-1]
    torch.testing.assert_close(lm.follow(model, ids, 150), at_once, atol=2e-3, rtol=1e-3)
    torch.testing.assert_close(lm.follow(model, ids[1:2], 150), lm.follow(model, ids, 150)[1:2], atol=2e-3, rtol=1e-3)


def test_answers_count_as_generate_would_give_them(packaged):
    model, tokenizer = packaged
    say, text = lm.speech(tokenizer), evaluate.stream(tokenizer, "guide")
    samples = [lm.facts(rng(i), say, text[i * 200 :], 200, 1) for i in range(6)]
    samples += [lm.copy(rng(i), say, text[i * 200 :], 200, 12) for i in range(6)]
    for see in (False, True):
        flags = [row[0] for row in lm.answered(model, samples, see_question=see)]
        for sample, flag in zip(samples, flags, strict=True):
            start, end = sample.answers[0]
            prompt = torch.from_numpy(sample.ids[None, :start])
            said = model.generate(
                prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=end - start, do_sample=False
            )
            assert flag == (said[0, start:].tolist() == sample.ids[start:end].tolist())


def test_evaluation_depends_on_its_seed_alone(packaged):
    model, tokenizer = packaged
    kwargs = {"lengths": (300,), "samples": 2}
    assert lm.copying(model, tokenizer, batch=1, **kwargs) == lm.copying(model, tokenizer, batch=2, **kwargs)

    def make(rng, say, text, length, depth):
        return lm.facts(rng, say, text(length), length, 1, np.array([depth]))

    one, again, other = (evaluate._made(tokenizer, make, seed, 300, 0.5, 0) for seed in (0, 0, 1))
    assert np.array_equal(one.ids, again.ids)
    assert not np.array_equal(one.ids, other.ids)


def test_identifiers_are_marked_token_by_token():
    pieces = ["def", " fo", "o", "(", "bar", "_", "1", "):", "\n", "  ", " return", " bar"]
    assert evaluate._names(pieces) == ["", "foo", "foo", "", "bar_1", "bar_1", "bar_1", "", "", "", "", "bar"]


def test_packaged_model_is_small_plain_and_loads_at_once(packaged):
    assert (lm.path() / "model.safetensors").stat().st_size <= 12e6
    assert type(packaged[0]).__name__ == "LlamaForCausalLM"
    began = time.process_time()
    lm.load()
    assert time.process_time() - began < 1


def test_card_states_what_is_measured(packaged, card):
    stated = card["test"]["bits per byte"]
    assert lm.bits_per_byte(*packaged, "guide", 512) == pytest.approx(stated["guide"]["512"], abs=2e-3)
    text = (lm.path() / "MODEL_CARD.md").read_text()
    assert f"{stated['guide']['512']:.3f}" in text


def test_packaged_model_beats_the_ngram_model_and_recalls(packaged, card):
    for row in card["test"]["bits per byte"].values():
        assert row["2048"] < row["5-gram"]
    for table in card["test"]["needle"].values():
        assert np.mean(list(table.values())) > 0.9
    found = lm.needle(*packaged, lengths=(2048,), depths=(0.0, 0.5), samples=2)[2048]
    assert np.mean(list(found.values())) >= 0.75
