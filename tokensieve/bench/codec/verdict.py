"""Verdict: which tokenizer to take at a budget, and what it beats; only differences whose paired interval excludes 0 count."""

from __future__ import annotations

from typing import Any

from tokensieve.bench.paired import Difference, paired

Row = dict[str, Any]
NEAR = 0.01
"""Rates that differ by less, as a share, are told as one."""
CLASSICS = ("PCA", "bicubic", "fewer samples", "WebP", "JPEG")


def difference(one: Row, two: Row) -> Difference | None:
    """The paired difference of two rows over the signals that both took, and whose files fit; None where there are none."""
    fits = [a and b for a, b in zip(_fits(one), _fits(two), strict=True)]
    pairs = zip(one["psnr_each"], two["psnr_each"], fits, strict=True)
    both = [(a, b) for a, b, fit in pairs if fit and a is not None and b is not None]
    return paired([a for a, _ in both], [b for _, b in both]) if both else None


def _words(gap: Difference) -> str:
    if gap.low is None or gap.high is None:
        return f"{gap.mean:+.2f} dB (too few for an interval)"
    return f"{gap.mean:+.2f} dB ({gap.low:+.2f} to {gap.high:+.2f})"


def _fits(row: Row) -> list[bool]:
    return row.get("fits") or [True] * len(row["psnr_each"])


def budgets(rows: dict[str, Row]) -> dict[int, str]:
    """The rates at which tokenizers are compared, in bits: for each number of tokens the largest of a tokenizer asked for."""
    out: dict[int, str] = {}
    tokens = sorted({r["asked_tokens"] for r in rows.values() if r.get("asked_tokens")})
    for count in tokens:
        group = [r for r in rows.values() if r.get("asked_tokens") == count and r.get("bits")]
        asked = [r for r in group if r["role"] == "tokenizer"] or group
        if asked:
            most = max(asked, key=lambda r: r["bits"])
            out[round(most["bits"])] = f"{most['tokens']} tokens of {most['bits'] / most['tokens']:.4g} bits"
    for row in rows.values():
        if row["role"] == "tokenizer" and row.get("bits") and not row.get("asked_tokens"):
            out.setdefault(round(row["bits"]), f"the rate of {row['name']}")
    return out


def verdict(rows: dict[str, Row], bits: int) -> list[str]:
    """Sentences for one budget: which tokenizer to take, by how much over the next, and over each baseline, or that it is not."""
    held = [r for r in rows.values() if r.get("bits") and r["bits"] <= bits * (1 + NEAR) and not r.get("collapsed")]
    asked = sorted((r for r in held if r["role"] == "tokenizer"), key=lambda r: -r["psnr"])
    out = []
    if not asked:
        return ["No tokenizer of this budget was measured, or all collapsed."]
    best = asked[0]
    out.append(f"Take {best['name']} ({_rate(best)}, {best['psnr']:.2f} dB).")
    for other in _one_each(asked[1:], best["name"]):
        gap = difference(best, other)
        if gap:
            word = "it is better by" if gap.distinguishable else "no sure difference:"
            out.append(f"Beside {other['name']} ({_rate(other)}) {word} {_words(gap)}.")
    for name in CLASSICS:
        row = classic(rows, name, bits)
        if row is not None:
            out.append(_against(best, row, bits))
    for name in ("vq, as published", "vq, revived"):
        row = max((r for r in held if r["name"] == name), key=lambda r: r["psnr"], default=None)
        gap = None if row is None else difference(best, row)
        if row is not None and gap is not None and row["psnr_each"] != best["psnr_each"]:
            out.append(f"{_word(gap)} {name} ({_rate(row)}): {_words(gap)}.")
    return out


def below_pca(rows: dict[str, Row], row: Row) -> bool | None:
    """Whether a tokenizer is surely below PCA at its own bits; None where there is no such row."""
    if row["role"] == "ceiling" or not row.get("bits") or "rate_bits" in row:
        return None
    other = classic(rows, "PCA", row["bits"])
    gap = None if other is None else difference(row, other)
    return None if gap is None else gap.distinguishable and gap.mean < 0


def classic(rows: dict[str, Row], name: str, bits: float) -> Row | None:
    """The row of a baseline that nobody trains at this rate."""
    known = [r for r in rows.values() if r["name"] == name and abs(r["rate_bits"] - bits) <= 1.5 * NEAR * bits]
    return min(known, key=lambda r: abs(r["rate_bits"] - bits), default=None)


def _one_each(rows: list[Row], taken: str) -> list[Row]:
    """The best row of each name but one."""
    out: dict[str, Row] = {}
    for row in rows:
        if row["name"] != taken:
            out.setdefault(row["name"], row)
    return list(out.values())


def _against(best: Row, row: Row, bits: int) -> str:
    gap = difference(best, row)
    fit = sum(_fits(row))
    if not fit or gap is None:
        return f"{row['name']}: its smallest files have {row['bits'] / 8:.0f} bytes, more than {bits / 8:.0f}; not compared."
    where = (
        "" if fit == len(_fits(row)) else f", on the {gap.count} of {len(_fits(row))} signals whose smallest file fits"
    )
    return f"{_word(gap)} {row['name']} ({_rate(row)}){where}: {_words(gap)}."


def _word(gap: Difference) -> str:
    if not gap.distinguishable:
        return "No sure difference from"
    return "It beats" if gap.mean > 0 else "It is below"


def _rate(row: Row) -> str:
    return f"{row['bits'] / 8:.0f} bytes"
