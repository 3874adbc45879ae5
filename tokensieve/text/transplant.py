"""Moving a model to another vocabulary: which rows it keeps, and which must be made up."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from tokensieve.text.rows import INITS, Gap
from tokensieve.text.vocabulary import Vocabulary


def gap(rows: Tensor, old: Tokenizer, new: Tokenizer, donor: Tensor | None = None, seed: int = 0) -> Gap:
    """What is shared by two vocabularies, and what is missing of the new one.

    Tokens are the same where they stand for the same bytes, or are special tokens of the same name, however each vocabulary
    writes them.

    Args:
        rows: (V, D), the model's by old id; V at least the old vocabulary.

    Raises:
        ValueError: rows has fewer rows than the old tokenizer ids, or holds NaN or infinity; the donor space has fewer rows
            than the new tokenizer ids.
    """
    before, after = Vocabulary.of(old), Vocabulary.of(new)
    if len(rows) < len(before):
        raise ValueError(
            f"the model has {len(rows):,} rows, its tokenizer {len(before):,} ids; they do not belong together"
        )
    bad = (~rows.isfinite().all(-1)).nonzero()[:, 0]
    if len(bad):
        raise ValueError(
            f"{len(bad)} rows of the model hold NaN or infinity, the first of id {int(bad[0])}; mend them first"
        )
    if donor is not None and len(donor) < len(after):
        raise ValueError(
            f"the donor space has {len(donor):,} rows, the new tokenizer {len(after):,} ids; they do not belong together"
        )
    known = {_identity(before, i): i for i in reversed(range(len(before))) if before.strings[i] is not None}
    ids = [i for i in range(len(after)) if after.strings[i] is not None]
    pairs = [(known[key], i) for i in ids if (key := _identity(after, i)) in known]
    shared = {i for _, i in pairs}
    missing = [i for i in ids if i not in shared]
    texts = [(after.bytes[i] or (after.strings[i] or "").encode()).decode(errors="replace") for i in missing]
    parts = [tuple(e.ids) for e in old.encode_batch(texts, add_special_tokens=False)] if texts else []
    return Gap(
        rows.float(),
        torch.tensor([o for o, _ in pairs], dtype=torch.long),
        torch.tensor([n for _, n in pairs], dtype=torch.long),
        torch.tensor(missing, dtype=torch.long),
        tuple(parts),
        donor,
        seed,
    )


def _identity(vocabulary: Vocabulary, i: int) -> tuple[bool, bytes]:
    given = vocabulary.bytes[i]
    return (True, (vocabulary.strings[i] or "").encode()) if given is None else (False, given)


def transplanted(given: Gap, init: str, size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Rows by new id: shared ones bit for bit, the others by an initialisation, ids without a token zero.

    Args:
        init: a name of :data:`~tokensieve.text.rows.INITS`; size: rows, at least the largest new id + 1.
    """
    made = torch.zeros(size, given.rows.shape[1], dtype=dtype)
    made[given.missing] = INITS.get(init)(given).to(dtype)
    made[given.shared_new] = given.rows[given.shared_old].to(dtype)
    return made


def settled(config: Any, old: Tokenizer, new: Tokenizer) -> list[str]:
    """Give a config the new ids of its special tokens, in place; returns the names of those that the new vocabulary lacks,
    which become None."""
    lost = []
    for part in {id(c): c for c in (config, config.get_text_config())}.values():
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            given = getattr(part, name, None)
            if given is None:
                continue
            ids = given if isinstance(given, (list, tuple)) else [given]
            found = [new.token_to_id(s) for i in ids if (s := old.id_to_token(i)) is not None]
            kept = [i for i in found if i is not None]
            setattr(part, name, None if not kept else kept if isinstance(given, (list, tuple)) else kept[0])
            if not kept:
                lost.append(name)
    return sorted(set(lost))
