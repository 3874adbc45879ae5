"""Moving a model to another vocabulary: which rows it keeps, and which must be made up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from tokensieve.text.rows import INITS, Gap
from tokensieve.text.vocabulary import Vocabulary


def gap(
    rows: Tensor,
    old: Tokenizer,
    new: Tokenizer,
    donor: Tensor | None = None,
    seed: int = 0,
    same: Mapping[int, int] | None = None,
) -> Gap:
    """What is shared by two vocabularies, and what is missing of the new one.

    Tokens are the same where they stand for the same bytes, or are special tokens of the same name, however each vocabulary
    writes them.

    Args:
        rows: (V, D), the model's by old id; V at least the old vocabulary.
        same: old ids by new ids that are the same besides (:func:`settled`).

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
    pairs = [(o, n) for o, n in pairs if n not in (same or {})] + [(o, n) for n, o in (same or {}).items()]
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


ROLES = ("bos", "eos", "pad")


def roles(tokenizer: Tokenizer, settings: Mapping[str, Any]) -> dict[str, int]:
    """The ids of a tokenizer's first, last and padding token, as its ``tokenizer_config.json`` names them."""
    out = {}
    for role in ROLES:
        given = settings.get(f"{role}_token")
        found = tokenizer.token_to_id(given["content"] if isinstance(given, dict) else given) if given else None
        if found is not None:
            out[role] = found
    return out


def settled(
    configs: Sequence[Any], old: Tokenizer, new: Tokenizer, given: Mapping[str, int]
) -> tuple[dict[int, int], list[str]]:
    """Give configs the new ids of their special tokens, in place.

    A token keeps its name where the new vocabulary has it; otherwise the new one of its role takes its place, and its row.

    Args:
        configs: a model's, of its text part, of its generation; given: ids by role (:func:`roles`).

    Returns:
        The old id of each new one that takes a place so, and the names that the new vocabulary has nothing for, which become
        None.
    """
    same: dict[int, int] = {}
    lost = set()
    for config in {id(c): c for c in configs if c is not None}.values():
        for role in ROLES:
            name = f"{role}_token_id"
            value = getattr(config, name, None)
            if value is None:
                continue
            kept = []
            for i in value if isinstance(value, (list, tuple)) else [value]:
                string = old.id_to_token(i)
                found = None if string is None else new.token_to_id(string)
                if found is None and role in given:
                    found = given[role]
                    same.setdefault(found, i)
                if found is not None and found not in kept:
                    kept.append(found)
            setattr(config, name, None if not kept else kept if isinstance(value, (list, tuple)) else kept[0])
            if not kept:
                lost.add(name)
    return same, sorted(lost)
