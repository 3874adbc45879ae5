"""A late-interaction index of a small folder (this one): half of the vectors, four bits for each of their dimensions.

The packaged encoder is the extra `retrieval`; `tokensieve index` and `tokensieve search` do the same on the command line.
"""

import tempfile
from pathlib import Path

import tokensieve as ts
from tokensieve.retrieval.index.sync import mirror

with tempfile.TemporaryDirectory() as folder:
    library = ts.Library.create(Path(folder) / "my.index", ts.Recipe(keep=0.5, codec="int4"))
    report = mirror(library, Path(__file__).parent)  # called again, it encodes what has changed
    print(f"{report.files} files, {report.passages} passages")
    for query in ("fewer keys and values for a prompt", "which tokens of an image matter?"):
        print(f"\n{query}")
        for hit in library.search(query, k=2):
            print(f"  {hit.score:5.2f}  {hit.document}  {hit.text[:60]!r}")
    library.close()
