"""Asking: people's questions as a model takes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokensieve.bench.questions import Question
from tokensieve.bench.subject import Subject


class QuestionPrompts:
    """Makes a model's inputs of questions, by its processor's chat template.

    Attributes:
        notes: what had to be done otherwise than asked, a sentence each.
    """

    def __init__(self, subject: Subject):
        self.subject, self.processor = subject, subject.processor
        self.notes: list[str] = []
        self.template = bool(getattr(self.processor, "chat_template", None))
        tokenizer = self.processor.tokenizer
        tokenizer.padding_side = "left"
        if getattr(tokenizer, "pad_token", "there") is None:
            if tokenizer.eos_token is None:
                raise ValueError(
                    f"{subject.name}: its tokenizer has neither a pad token nor an end token, so prompts cannot be batched; "
                    "set tokenizer.pad_token and save it beside the model"
                )
            tokenizer.pad_token = tokenizer.eos_token
            self.notes.append(
                f"the tokenizer has no pad token; {tokenizer.eos_token!r} fills up shorter prompts, behind a mask"
            )
        if not self.template and subject.name != "testbed":
            self.notes.append("the model has no chat template: prompts are the images' marks and the bare question")

    def text(self, question: Question) -> str:
        """The prompt up to where the answer begins."""
        asked = "\n\n".join([*question.context, question.question])
        if self.subject.name == "testbed" and len(question.images) == 1:
            return self.subject.prompt(asked)
        if not self.template:
            marks = [str(getattr(self.processor, "image_token", "<image>"))] * len(question.images)
            return " ".join([*filter(None, [question.system]), *marks, asked])
        content: list[dict[str, str]] = [{"type": "image"} for _ in question.images]
        user = {"role": "user", "content": [*content, {"type": "text", "text": asked}]}
        if not question.system:
            return self._applied([user])
        system = {"role": "system", "content": [{"type": "text", "text": question.system}]}
        try:
            return self._applied([system, user])
        except Exception as error:  # whatever a template raises
            note = f"the chat template takes no system prompt ({error}); it stands in front of the question"
            if note not in self.notes:
                self.notes.append(note)
            user["content"] = [{"type": "text", "text": question.system}, *user["content"]]
            return self._applied([user])

    def _applied(self, turns: list[dict[str, Any]]) -> str:
        return self.processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)

    def inputs(self, questions: Sequence[Question]) -> Any:
        """Model inputs of a batch of questions that hold equally many images each, padded on the left."""
        model, pictures = self.subject.model, [q.pictures() for q in questions]
        given: dict[str, Any] = {"text": [self.text(q) for q in questions], "padding": True, "return_tensors": "pt"}
        if questions[0].images:
            alone = len(questions[0].images) == 1
            given["images"] = [p[0] for p in pictures] if alone else pictures
        return self.processor(**given).to(model.device, model.dtype)

    def choices(self, question: Question) -> list[list[int]]:
        """Token ids of each of a question's choices, as they would follow the prompt."""
        lead = "" if self.template or self.subject.name == "testbed" else " "
        tokenizer = self.processor.tokenizer
        return [tokenizer(lead + choice, add_special_tokens=False)["input_ids"] for choice in question.choices]


def groups(questions: Sequence[Question], size: int) -> list[list[Question]]:
    """Batches of at most ``size``: in each, all hold equally many images and all have choices or none has."""
    kinds: dict[tuple[int, bool], list[Question]] = {}
    for question in questions:
        kinds.setdefault((len(question.images), bool(question.choices)), []).append(question)
    return [some[i : i + size] for some in kinds.values() for i in range(0, len(some), size)]
