"""`make benchmark`: every benchmark in turn; results land in out/benchmarks as JSON."""

from __future__ import annotations

from pathlib import Path

from benchmarks import chunked, decode, growth, import_time, prefill, search_speed, selection


def main(folder: Path = Path("out/benchmarks")) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for benchmark in (selection, prefill, decode, chunked, growth, search_speed, import_time):
        benchmark.main(folder / f"{benchmark.__name__.rsplit('.', 1)[-1]}.json")


if __name__ == "__main__":
    main()
