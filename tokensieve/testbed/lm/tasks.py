"""Made-up facts in real text, and lists of pairs: what a context of any length has to be remembered for."""

from dataclasses import dataclass

import numpy as np

IGNORE = -100


@dataclass(frozen=True)
class Speech:
    """The token ids that the tasks are spoken in."""

    words: np.ndarray  # single tokens, a blank and at least four letters
    before: tuple[int, ...]  # of a fact, up to its key
    middle: tuple[int, ...]  # between key and value
    after: tuple[int, ...]
    colon: int
    line: int

    def fact(self, key, value) -> list[int]:
        return [*self.before, *key, *self.middle, *value, *self.after]

    def question(self, key) -> list[int]:
        return [*self.before, *key, *self.middle]

    def pair(self, key, value) -> list[int]:
        return [*key, self.colon, *value, self.line]


def speech(tokenizer) -> Speech:
    """Any tokenizer of `transformers` that splits off blanks before words."""

    def ids(text: str) -> tuple[int, ...]:
        return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])

    words = []
    for index in range(len(tokenizer)):
        text = tokenizer.decode([index])
        if len(text) > 4 and text[0] == " " and text[1:].isascii() and text[1:].isalpha() and text[1:].islower():
            words.append(index)
    return Speech(np.array(words), ids("\nThe code of"), ids(" is"), ids(".\n"), ids(":")[0], ids("\n")[0])


def draw(rng: np.random.Generator, words: np.ndarray, count: int, width: int = 2) -> np.ndarray:
    """`count` different sequences of `width` words, (count, width)."""
    numbers = rng.choice(len(words) ** width, size=count, replace=False)
    return words[np.stack([numbers // len(words) ** i % len(words) for i in range(width)], axis=1)]


@dataclass(frozen=True)
class TaskSample:
    """A sequence whose `ids[:context]` is what is remembered; `answers` are the (start, end) to be produced after it."""

    ids: np.ndarray
    context: int
    answers: tuple[tuple[int, int], ...]
    depths: tuple[float, ...]  # where in the context each answer stands, 0 at its beginning
    made: tuple[tuple[int, int], ...] = ()  # the (start, end) in the context that no reader of the text could predict

    def answer_labels(self) -> np.ndarray:
        """What the token at each place has to predict: the answers only."""
        labels = np.full(len(self.ids), IGNORE, dtype=np.int64)
        for start, end in self.answers:
            labels[start - 1 : end - 1] = self.ids[start:end]
        return labels

    def text_labels(self) -> np.ndarray:
        """What the token at each place has to predict: the text of the context, without what was put into it."""
        labels = np.full(len(self.ids), IGNORE, dtype=np.int64)
        labels[: self.context - 1] = self.ids[1 : self.context]
        for start, end in self.made:
            labels[start - 1 : end] = IGNORE
        return labels


def plain(text: np.ndarray) -> TaskSample:
    return TaskSample(text.astype(np.int64), len(text), (), ())


def facts(
    rng: np.random.Generator, say: Speech, text: np.ndarray, length: int, count: int, depths: np.ndarray | None = None
) -> TaskSample:
    """`count` facts at random places, or at `depths`, in the text; then a question for each, in random order.

    The sample has `length` tokens in all, context and questions with their answers.
    """
    keys, values = draw(rng, say.words, count), draw(rng, say.words, count)
    spoken = [say.fact(k, v) for k, v in zip(keys, values, strict=True)]
    each = len(spoken[0])
    context = length - count * each
    room = context - count * each  # of plain text
    where = np.sort(rng.random(count) if depths is None else depths)
    cuts = np.round(where * room).astype(int)
    made = tuple((cut + i * each, cut + (i + 1) * each) for i, cut in enumerate(cuts.tolist()))
    pieces, last = [], 0
    for cut, fact in zip(cuts, spoken, strict=True):
        pieces += [text[last:cut], np.array(fact)]
        last = cut
    pieces.append(text[last:room])
    answers, at = [], context
    order = rng.permutation(count)
    for i in order:
        ask = say.fact(keys[i], values[i])
        start = at + len(say.question(keys[i]))
        answers.append((start, start + len(values[i])))
        pieces.append(np.array(ask))
        at += each
    return TaskSample(
        np.concatenate(pieces).astype(np.int64), context, tuple(answers), tuple(where[order].tolist()), made
    )


def pairs(rng: np.random.Generator, say: Speech, length: int, asked: int | None = None) -> TaskSample:
    """A list of `key : value` lines that fills the context, then `asked` of the keys again (half the length if None)."""
    each = len(say.pair((0, 0), (0, 0)))
    lines = length // each
    asked = lines // 2 if asked is None else asked
    count = lines - asked
    keys, values = draw(rng, say.words, count), draw(rng, say.words, count)
    order = rng.choice(count, size=asked, replace=asked > count)
    rows = np.concatenate([np.arange(count), order])
    marks = np.full(len(rows), say.colon), np.full(len(rows), say.line)
    ids = np.column_stack([keys[rows], marks[0], values[rows], marks[1]]).ravel()
    answers = tuple((i * each + 3, i * each + 5) for i in range(count, lines))
    context = count * each
    return TaskSample(ids.astype(np.int64), context, answers, tuple(((order + 0.5) / count).tolist()), ((0, context),))


def copy(rng: np.random.Generator, say: Speech, text: np.ndarray, length: int, span: int) -> TaskSample:
    """`span` random words somewhere in the text; at the end its first few are said again and the rest has to follow."""
    words = rng.choice(say.words, size=span)
    room = length - 2 * span - 2
    depth = rng.random()
    cut = round(depth * room)
    line = np.array([say.line])
    ids = np.concatenate([text[:cut], line, words, text[cut:room], line, words])
    context = length - span - 1
    answer = (context + 1 + min(4, span // 2), length)
    return TaskSample(ids.astype(np.int64), context, (answer,), (depth,), ((cut, cut + span + 1),))
