"""A LLaVA around the real SmolLM2: tower, projector and adapters are trained, the language model's own weights stay as they are.

`python -m benchmarks.around --out out/around --minutes 95` trains, measures and writes a card; interrupted, it goes on. On a GPU:
`--device cuda --minutes 20`.
"""
