"""What `benchmarks.search_speed` has measured, as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.pages import table


def page(data: dict[str, Any]) -> str:
    """The goals, and a table of each part."""
    exact, stages = dict(data["exact"]), data["stages"]
    bare = exact.pop("bare ms")
    parts: list[tuple[str, Sequence[str], list[list[str]]]] = [
        (
            f"Measured on {data['date']}: {data['cpu']}, {data['threads']} threads, torch {data['versions']['torch']}. Clustered "
            "vectors of 128 dimensions, 64 to a document, queries of 32; `python -m benchmarks.search_speed` measures again.",
            ("goal", "measured", "goal", "reached"),
            [[name, _short(value), _short(goal), "yes" if ok else "no"] for name, value, goal, ok in data["goals"]],
        ),
        (
            f"Exact search of 2,000 documents, over the bare matrix product with max ({bare:.1f} ms). Documents are of equal "
            "length in the first row, of 1 to 127 tokens in the others:",
            ("`maxsim` of", "over the bare product"),
            [[name, f"{value:.2f}"] for name, value in exact.items()],
        ),
        (
            "The same from an index, by codec: bytes of a token, tokens built in a second (with their sketches), and the "
            "recall@10 against float32:",
            ("codec", "bytes", "built a second", "over the bare product", "recall@10"),
            [
                [c["codec"], f"{c['bytes']:.0f}", f"{c['rate']:,.0f}", f"{c['over']:.2f}", f"{c['recall']:.3f}"]
                for c in data["codecs"]
            ],
        ),
        (
            f"10,000 documents, candidates and rerank, over brute force in float32 ({stages[0]['brute ms']:.0f} ms). Reranked "
            f"are the fewest of {', '.join(map(str, data['reranked']))} with which 99% are found of what scoring all of the "
            "index finds (or the last):",
            (
                "codec, sketch", "bytes of a sketch", "reranked", "recall of all scored", "recall of float32", "ms",
                "over brute force", "all scored over it",
            ),
            [
                [
                    f"{s['codec']}, {s['sketch']}", f"{s['sketch bytes']:,.0f}", str(s["depth"]), f"{s['own']:.3f}",
                    f"{s['recall']:.3f}", f"{s['ms']:.1f}", f"{s['over']:.2f}", f"{s['all']:.2f}",
                ]
                for s in stages
            ],
        ),
        (
            "10,000 documents in a process of their own: megabytes of codes, the memory that twelve searches of all of them "
            "add, and milliseconds of opening, first with nothing in the system's cache:",
            ("codec", "codes MB", "resident over codes", "opened cold", "again"),
            [
                [
                    m["codec"], f"{m['codes'] / 2**20:.0f}", f"{m['resident'] / m['codes']:.2f}", f"{m['cold ms']:.1f}",
                    f"{m['again ms']:.1f}",
                ]
                for m in data["memory"]
            ],
        ),
    ]  # fmt: skip
    return "\n\n".join(f"{text}\n\n{table(head, rows)}" for text, head, rows in parts)


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
