"""People's own questions: what a file may hold, and every line that cannot be asked, by its number and fault."""

import json

import pytest
from PIL import Image

from tests.asking import FakeTokenizer, TalkingProcessor, fake_subject
from tokensieve.bench.asking import QuestionPrompts, groups
from tokensieve.bench.questions import Question, read_questions


@pytest.fixture
def folder(tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    Image.new("RGB", (9, 8)).save(tmp_path / "b.png")
    (tmp_path / "torn.png").write_bytes((tmp_path / "a.png").read_bytes()[:40])
    return tmp_path


def written(folder, *lines, start=b"", end="\n"):
    file = folder / "q.jsonl"
    raw = [line if isinstance(line, (str, bytes)) else json.dumps(line) for line in lines]
    file.write_bytes(start + end.encode().join(r if isinstance(r, bytes) else r.encode() for r in raw))
    return file


GOOD = {"image": "a.png", "question": "what ?", "answer": "red"}


def test_every_key_is_read(folder):
    file = written(
        folder,
        GOOD,
        {
            "image": ["a.png", "b.png"],
            "question": "both ?",
            "answer": ["a", 3],
            "kind": "pair",
            "system": "Be brief.",
            "id": 7,
        },
        {"image": None, "question": "none ?", "answer": "B", "choices": ["yes", "no"]},
        {"question": "none either ?", "answer": "no", "choices": ["yes", "no"]},
    )
    one, two, three, four = read_questions(file).items
    assert (one.name, one.images, one.answers, one.kind, one.system) == (
        "line 1",
        (folder / "a.png",),
        ("red",),
        "all",
        "",
    )
    assert (two.name, len(two.images), two.answers, two.kind, two.system) == ("7", 2, ("a", "3"), "pair", "Be brief.")
    assert (three.images, three.answers, three.mark) == ((), ("no",), "")
    assert four.answers == ("no",)
    assert one.mark != two.mark
    assert [p.size for p in two.pictures()] == [(9, 9), (9, 8)]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
def test_line_ends_and_marks_of_all_systems(folder, start, end):
    found = read_questions(written(folder, GOOD, "", {**GOOD, "question": "größe ?"}, "", start=start, end=end))
    assert [q.question for q in found.items] == ["what ?", "größe ?"]
    assert found.skipped == []


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ('{"image": "a.png", "question": "how', "not JSON"),
        (b'{"question": "\xff", "answer": "1"}', "not UTF-8"),
        ("[1, 2]", "a list, not an object"),
        ({"question": "what ?"}, "answer is missing"),
        ({"question": "what ?", "answer": []}, "answer is missing"),
        ({"question": "what ?", "answer": " "}, "answer holds an empty text"),
        ({"question": "what ?", "answer": {"a": 1}}, "answer is {'a': 1}"),
        ({"answer": "red"}, "question is missing"),
        ({"question": 3, "answer": "red"}, "question is 3; it must be text"),
        ({**GOOD, "image": "gone.png"}, "image gone.png: no such file"),
        ({**GOOD, "image": ["a.png", "torn.png"]}, "image torn.png cannot be read"),
        ({**GOOD, "image": 4}, "image is 4"),
        ({**GOOD, "id": "x"}, "the id 'x' is that of line 1"),
        ({**GOOD, "choices": ["blue", "green"]}, "none of the choices blue, green"),
    ],
)
def test_lines_that_cannot_be_asked_are_named(folder, line, fault):
    found = read_questions(written(folder, {**GOOD, "id": "x"}, line, {**GOOD, "id": "y"}))
    assert [q.name for q in found.items] == ["x", "y"]
    assert len(found.skipped) == 1
    assert found.skipped[0].startswith("line 2: ")
    assert fault in found.skipped[0]


def test_files_that_hold_nothing_to_ask(folder):
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_questions(folder / "nowhere.jsonl")
    with pytest.raises(ValueError, match="one JSON array; write one object a line"):
        read_questions(written(folder, json.dumps([GOOD], indent=1)))
    with pytest.raises(ValueError, match="it is empty"):
        read_questions(written(folder, ""))
    with pytest.raises(ValueError, match="save it as UTF-8"):
        read_questions(written(folder, json.dumps(GOOD).encode("utf-16")))
    with pytest.raises(ValueError, match=r"none of its 1 lines can be asked: line 1: image gone\.png"):
        read_questions(written(folder, {**GOOD, "image": "gone.png"}))


def test_keys_that_are_not_read_are_said_and_a_limit_holds(folder):
    found = read_questions(written(folder, {**GOOD, "source": "x"}, {**GOOD, "source": "y"}, GOOD), limit=2)
    assert len(found.items) == 2
    assert found.notes == ["'source' is no key of a question and is not read (2 lines)"]


# ---- as a model takes them ----------------------------------------------------------------------------------------------


class Templated(TalkingProcessor):
    """With a chat template; one that takes no system prompt, if told so."""

    chat_template = "there"

    def __init__(self, system=True):
        super().__init__()
        self.system = system

    def apply_chat_template(self, turns, add_generation_prompt, tokenize):
        if turns[0]["role"] == "system" and not self.system:
            raise RuntimeError("System role not supported")
        return "|".join(f"{t['role']}:" + ",".join(c.get("text", c["type"]) for c in t["content"]) for t in turns)


def prompts(processor):
    subject = fake_subject()
    subject.processor = processor
    return QuestionPrompts(subject)


def test_prompts_by_the_chat_template_or_without(folder):
    files = (folder / "a.png", folder / "b.png")
    plain, brief = (
        Question("q", "what ?", ("a",), files),
        Question("q", "what ?", ("a",), files[:1], system="Be brief."),
    )
    made = prompts(Templated())
    assert made.text(plain) == "user:image,image,what ?"
    assert made.text(brief) == "system:Be brief.|user:image,what ?"
    assert made.notes == []
    made = prompts(Templated(system=False))
    assert made.text(brief) == made.text(brief) == "user:Be brief.,image,what ?"
    assert len(made.notes) == 1
    assert "takes no system prompt" in made.notes[0]
    made = prompts(TalkingProcessor())
    assert made.text(plain) == "<image> <image> what ?"
    assert made.text(brief) == "Be brief. <image> what ?"
    assert "no chat template" in made.notes[0]


def test_a_tokenizer_without_a_pad_token_takes_its_end():
    processor = TalkingProcessor()
    processor.tokenizer.pad_token = None
    made = prompts(processor)
    assert processor.tokenizer.pad_token == FakeTokenizer.eos_token
    assert "no pad token" in made.notes[0]
    processor.tokenizer.pad_token = processor.tokenizer.eos_token = None
    with pytest.raises(ValueError, match="neither a pad token nor an end token"):
        prompts(processor)


def test_batches_hold_prompts_of_one_kind(folder):
    files = (folder / "a.png", folder / "b.png")
    some = [Question(str(i), "what ?", ("a",), files[: i % 3], ("a", "b") if i % 2 else ()) for i in range(12)]
    made = groups(some, 2)
    assert sorted(q.name for g in made for q in g) == sorted(q.name for q in some)
    assert all(len(g) <= 2 and len({(len(q.images), bool(q.choices)) for q in g}) == 1 for g in made)
