"""A LLaVA around the real SmolLM2: tower and projector are trained, the language model stays as it came.

`python -m benchmarks.around --out out/around --minutes 60` trains, measures and writes a card; interrupted, it goes on. On a GPU:
`--device cuda --minutes 20`.
"""
