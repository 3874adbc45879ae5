"""Clips, pairs of pictures and pictures in crops: what is drawn, and that each question has one right answer."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from tokensieve import testbed
from tokensieve.testbed import clips
from tokensieve.testbed.words import COUNTS, EXTENDED, VOCABULARY

CLIPS = [testbed.clip(1, index, "test") for index in range(25)]
PAIRS = [testbed.pair(1, index, "test") for index in range(25)]
LARGE = [testbed.large(1, index, "test") for index in range(12)]


def pixels(image):
    return np.asarray(image).astype(int)


def test_the_packaged_vocabulary_keeps_its_ids():
    assert EXTENDED[: len(VOCABULARY)] == VOCABULARY
    assert len(set(EXTENDED)) == len(EXTENDED)


@pytest.mark.parametrize("draw", [testbed.clip, testbed.large])
def test_drawing_is_a_function_of_split_seed_and_index(draw):
    def seen(made):
        return np.stack([pixels(i) for i in getattr(made, "images", None) or [made.image]])

    one = seen(draw(3, 5))
    assert np.array_equal(one, seen(draw(3, 5)))
    assert all(not np.array_equal(one, seen(o)) for o in (draw(4, 5), draw(3, 6), draw(3, 5, "test")))


def test_clips_draw_digits_of_their_split(monkeypatch):
    drawn: set[int] = set()
    digit = clips._digit

    def spy(number, size):
        drawn.add(number)
        return digit(number, size)

    monkeypatch.setattr(clips, "_digit", spy)
    for index in range(20):
        testbed.clip(2, index, "test")
    assert drawn
    assert drawn <= set(np.concatenate(clips.digit_pool("test")).tolist())
    assert not drawn & set(np.concatenate(clips.digit_pool("train")).tolist())


@pytest.mark.parametrize("clip", CLIPS)
def test_actors_are_seen_where_they_are_said_to_be(clip):
    assert len(clip.images) == clips.FRAMES == 8
    assert 2 <= len(clip.actors) <= 5
    assert len({a.colour for a in clip.actors}) == len(clip.actors)
    union = np.zeros((8, 336, 336), dtype=bool)
    for actor in clip.actors:
        assert len(actor.frames) >= 3
        assert actor.frames == tuple(range(actor.frames[0], actor.frames[-1] + 1))
        for t, (x0, y0, x1, y1) in ((t, actor.boxes[t]) for t in actor.frames):
            assert 0 <= x0 < x1 <= 336
            assert 0 <= y0 < y1 <= 336
            assert not union[t, y0:y1, x0:x1].any()
            union[t, y0:y1, x0:x1] = True
    frames = np.stack([pixels(image) for image in clip.images])
    bare = np.where(union[..., None], -1, frames)
    still = bare.max(0)
    # Outside the boxes nothing changes; inside, every box holds ink.
    assert bool(((bare == still) | (bare < 0)).all())
    for actor in clip.actors:
        for t in actor.frames:
            x0, y0, x1, y1 = actor.boxes[t]
            known = still[y0:y1, x0:x1]
            covered = (known[..., 0] < 0) | (np.abs(frames[t, y0:y1, x0:x1] - known).max(2) > 20)
            assert covered.mean() > 0.1


@pytest.mark.parametrize("clip", CLIPS)
def test_motion_is_straight_and_far_enough_to_see(clip):
    for actor in clip.actors:
        x = np.array([actor.boxes[t][0] for t in actor.frames])
        y = np.array([actor.boxes[t][1] for t in actor.frames])
        dx, dy = clips.WAYS[actor.way] if actor.way else (0, 0)
        assert bool((np.sign(np.diff(x)) == dx).all())
        assert bool((np.sign(np.diff(y)) == dy).all())
        assert abs(x[-1] - x[0]) + abs(y[-1] - y[0]) >= (clips.LEAST if actor.way else 0)


@pytest.mark.parametrize("clip", CLIPS)
def test_answers_about_clips_are_right_and_unique(clip):
    asked = testbed.clip_questions(clip)
    assert len({q.text for q in asked}) == len(asked)
    by_colour = {a.colour: a for a in clip.actors}
    for q in asked:
        words = q.text.split()
        if q.kind == "direction":
            actor = by_colour[words[4]]
            assert words[5] == actor.kind
            box, end = actor.boxes[actor.frames[0]], actor.boxes[actor.frames[-1]]
            dx, dy = end[0] - box[0], end[1] - box[1]
            assert (
                q.answer == {(1, 0): "right", (-1, 0): "left", (0, 1): "down", (0, -1): "up"}[np.sign(dx), np.sign(dy)]
            )
        elif q.kind == "count":
            those = [a for a in clip.actors if words[2] == "things" or f"{a.kind}s" == words[2]]
            if words[3] == "move":
                those = [a for a in those if len(set(a.boxes)) > 2 or (len(set(a.boxes)) > 1 and None not in a.boxes)]
            assert q.answer == COUNTS[len(those)]
        else:
            pool = clip.actors
            if words[0] == "which":
                pool = [a for a in clip.actors if a.called in q.text]
                assert len(pool) == 2
            came = sorted(a.frames[0] for a in pool)
            at = came[0] if "first" in words else came[-1]
            assert came.count(at) == 1
            actor = next(a for a in pool if a.frames[0] == at)
            assert q.answer == (actor.name if words[0] == "which" else actor.colour)
            assert set(actor.frames) <= set(q.frames)


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_questions_on_pairs_need_the_second_picture(first, second):
    asked = testbed.pair_questions(first, second)
    assert len({q.text for q in asked}) == len(asked)
    alone = {q.text: q.answer for q in testbed.questions(first)}
    right = {q.text: q.answer for q in testbed.questions(second)}
    counts = [Counter(f"{t.kind}s" for t in scene.things) for scene in (first, second)]
    for c in counts:
        c["things"] = sum(c.values())
    for q in asked:
        words = q.text.split()
        if q.kind == "second":
            plain = q.text.replace(" in the second picture ?", " ?")
            assert q.answer == right[plain] != alone.get(plain)
        elif words[-3:] == ["in", "all", "?"]:
            assert q.answer == COUNTS[counts[0][words[2]] + counts[1][words[2]]]
        elif words[2] == "has":
            more = counts[0][words[4]] - counts[1][words[4]]
            assert more
            assert q.answer == ("first" if more > 0 else "second")
        else:
            names = [
                {t.colour if words[1] == "colour" else t.name for t in s.things if words[1] in ("colour", t.kind)}
                for s in (first, second)
            ]
            assert names[0] & names[1] == {q.answer}


@pytest.mark.parametrize("scene", LARGE)
def test_each_thing_of_a_large_scene_lies_in_one_crop(scene):
    seen = testbed.views(scene.image)
    assert [image.size for image in seen] == [(336, 336)] * 5
    whole = pixels(scene.image)
    assert np.array_equal(np.vstack([np.hstack([pixels(i) for i in seen[k : k + 2]]) for k in (1, 3)]), whole)
    assert 1 <= len(scene.things) <= 5
    for thing in scene.things:
        x0, y0, x1, y1 = thing.box
        assert (x0 // 336, y0 // 336) == ((x1 - 1) // 336, (y1 - 1) // 336)
        row, column = thing.cell
        assert column * 224 <= x0 < x1 <= (column + 1) * 224
        assert row * 224 <= y0 < y1 <= (row + 1) * 224
        assert scene.ink.crop(thing.box).getbbox() is not None
    blocks = whole.reshape(336, 2, 336, 2, 3).mean((1, 3))
    assert np.abs(pixels(seen[0]) - blocks).mean() < 2
    assert {q.kind for q in testbed.questions(scene)} <= set(testbed.QUESTION_KINDS)


def test_backgrounds_pass_for_no_colour():
    for index in range(60):
        scene = testbed.large(5, index)
        free = pixels(scene.image)[pixels(scene.ink) == 0]
        assert np.ptp(free, axis=1).max() < 60


@pytest.mark.parametrize(
    ("draw", "kinds", "pictures", "words"),
    [
        (testbed.clip_set, testbed.CLIP_KINDS, 8, EXTENDED),
        (testbed.pair_set, testbed.PAIR_KINDS, 2, EXTENDED),
        (testbed.anyres_set, testbed.QUESTION_KINDS, 1, VOCABULARY),
    ],
)
def test_sets_are_balanced_repeatable_and_in_the_vocabulary(draw, kinds, pictures, words):
    items = draw(number=12, each=3)
    assert [item.kind for item in items] == [kind for kind in kinds for _ in range(3)]
    assert [item.question for item in items] == [item.question for item in draw(number=12, each=3)]
    assert [i.question for i in draw(number=12, each=3, split="train")] != [i.question for i in items]
    for item in items:
        assert len(item.images) == pictures
        marks = (0, 1) if pictures == 8 else (pictures, 0)
        assert tuple(item.prompt.split().count(mark) for mark in ("<image>", "<video>")) == marks
        assert set(item.prompt.split()) | set(item.answer.split()) <= set(words)
        assert item.prompt.endswith(f"{item.question.text} answer :")
    with pytest.raises(ValueError, match="raise `number`"):
        draw(number=1, each=50)


def test_no_word_of_clips_gives_its_answer_away():
    """A template has no one answer that is right most of the time."""
    for kind, least in (("order", 0.7), ("direction", 0.5)):
        answers: dict[str, Counter] = {}
        for index in range(60):
            for q in testbed.clip_questions(testbed.clip(9, index)):
                if q.kind == kind:
                    answers.setdefault(q.template, Counter())[q.answer] += 1
        for seen in answers.values():
            assert max(seen.values()) < least * sum(seen.values())
