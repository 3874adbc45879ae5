"""A small trained LLaVA and generated scenes, so that everything here runs and is measured with no download."""

from .data import Item, test_set
from .evaluate import answers, correct, evaluate, summarise
from .model import SIZES, build, build_processor, load, path
from .questions import QUESTION_KINDS, Question, prompt, questions
from .scenes import Scene, Thing, generate

__all__ = [
    "QUESTION_KINDS",
    "SIZES",
    "Item",
    "Question",
    "Scene",
    "Thing",
    "answers",
    "build",
    "build_processor",
    "correct",
    "evaluate",
    "generate",
    "load",
    "path",
    "prompt",
    "questions",
    "summarise",
    "test_set",
]
