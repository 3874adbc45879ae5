"""A small trained LLaVA and generated scenes, so that everything here runs and is measured with no download."""

from .anyres import anyres_set, large, views
from .clips import CLIP_KINDS, Actor, Clip, ClipQuestion, clip, clip_questions, clip_set
from .data import Item, test_set
from .evaluate import answers, correct, evaluate, summarise
from .model import SIZES, build, build_processor, load, path
from .pairs import PAIR_KINDS, pair, pair_questions, pair_set
from .questions import QUESTION_KINDS, Question, prompt, questions
from .scenes import Scene, Thing, generate
from .several import Several

__all__ = [
    "CLIP_KINDS",
    "PAIR_KINDS",
    "QUESTION_KINDS",
    "SIZES",
    "Actor",
    "Clip",
    "ClipQuestion",
    "Item",
    "Question",
    "Scene",
    "Several",
    "Thing",
    "answers",
    "anyres_set",
    "build",
    "build_processor",
    "clip",
    "clip_questions",
    "clip_set",
    "correct",
    "evaluate",
    "generate",
    "large",
    "load",
    "pair",
    "pair_questions",
    "pair_set",
    "path",
    "prompt",
    "questions",
    "summarise",
    "test_set",
    "views",
]
