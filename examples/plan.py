"""A plan: two methods at two places, what it costs, written as JSON, loaded and run."""

import tempfile
from pathlib import Path

import tokensieve as ts
from tokensieve import testbed

plan = ts.Plan([ts.stage("tome", keep=288), ts.stage("fastv", keep=64, layers=2)])
with tempfile.TemporaryDirectory() as folder:
    plan.save(Path(folder) / "fast.json")
    print((Path(folder) / "fast.json").read_text(encoding="utf-8"))
    loaded = ts.Plan.load(Path(folder) / "fast.json")
assert loaded == plan

model, processor = testbed.load()
print(f"{ts.cost(model, loaded, tokens=576).share:.0%} of the FLOPs of encoder and prefill")
item = testbed.test_set(n_scenes=1, questions_per_kind=1)[0]
inputs = processor(images=[item.image], text=[testbed.prompt(item.question.text)], return_tensors="pt")
with ts.sieve(model, loaded) as s:
    model.generate(**inputs, max_new_tokens=4, do_sample=False)
print(f"tokens by layer: {s.last.layer_tokens}")
