"""Questions about pictures as a person keeps them: image files, and rows of JSON that name them."""

import json

from tokensieve import testbed


def questions(folder, name):
    """Write ten of the testbed's questions to ``folder / name``, a line each, and their pictures beside it."""
    rows = []
    for i, item in enumerate(testbed.test_set(10, 1)):
        item.image.save(folder / f"{i}.png")
        rows.append({"image": str(folder / f"{i}.png"), "question": item.question.text, "answer": item.answer})
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
