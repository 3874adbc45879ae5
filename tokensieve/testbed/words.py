"""The closed vocabulary of the testbed: what can be drawn, asked and answered."""

COLOURS = {
    "red": (215, 35, 40),
    "green": (35, 160, 60),
    "blue": (45, 75, 225),
    "yellow": (235, 205, 25),
    "orange": (240, 125, 15),
    "purple": (135, 45, 185),
    "pink": (245, 125, 190),
    "cyan": (30, 190, 210),
}
DIGITS = tuple("0123456789")
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "heart", "diamond")
LEXICON = (
    *("tree", "fish", "bird", "moon", "lamp", "book", "door", "ship", "frog", "milk", "corn", "salt"),
    *("wolf", "rain", "hand", "king", "nest", "park", "cup", "key", "bus", "hat", "jam", "zip"),
)
KINDS = {"digit": DIGITS, "shape": SHAPES, "word": LEXICON}
NAMES = DIGITS + SHAPES + LEXICON

ROWS = ("top", "centre", "bottom")
COLUMNS = ("left", "middle", "right")
COUNTS = ("zero", "one", "two", "three", "four", "five")

SPECIAL = ("<pad>", "<unk>", "<s>", "</s>", "<image>")
FUNCTION_WORDS = (
    *("which", "is", "what", "colour", "the", "where", "how", "many", "are", "there", "does", "say"),
    *("digit", "shape", "word", "digits", "shapes", "things", "?", "answer", ":"),
)
VOCABULARY = SPECIAL + FUNCTION_WORDS + tuple(COLOURS) + NAMES + ROWS + COLUMNS + COUNTS

MOTION = ("came", "first", "last", "way", "go", "up", "down", "or", "move")
PICTURES = ("in", "second", "picture", "pictures", "both", "all", "has", "more")
EXTENDED = (*VOCABULARY, *MOTION, *PICTURES, "<video>")
"""What the model of several pictures knows; `VOCABULARY`, what the model of one picture knows, keeps its ids."""
