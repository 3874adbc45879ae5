"""Two small trained models and generated pictures, so that everything here runs and is measured with no download."""

from .anyres import anyres_set, large, views
from .clips import CLIP_KINDS, Actor, Clip, ClipQuestion, clip, clip_questions, clip_set
from .data import Item, test_set
from .evaluate import answers, correct, evaluate, evaluate_several, summarise, usual_answers
from .model import SIZES, build, build_processor, load, path
from .onevision import ItemReader, load_several, several_path
from .pairs import PAIR_KINDS, pair, pair_questions, pair_set
from .questions import QUESTION_KINDS, SceneQuestion, prompt, questions
from .scenes import Scene, Thing, generate
from .several import FORMS, PATCHES, PICTURES, Several

__all__ = [
    "CLIP_KINDS",
    "FORMS",
    "PAIR_KINDS",
    "PATCHES",
    "PICTURES",
    "QUESTION_KINDS",
    "SIZES",
    "Actor",
    "Clip",
    "ClipQuestion",
    "Item",
    "ItemReader",
    "Scene",
    "SceneQuestion",
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
    "evaluate_several",
    "generate",
    "large",
    "load",
    "load_several",
    "pair",
    "pair_questions",
    "pair_set",
    "path",
    "prompt",
    "questions",
    "several_path",
    "summarise",
    "test_set",
    "usual_answers",
    "views",
]
