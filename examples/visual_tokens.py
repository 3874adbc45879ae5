"""Fewer visual tokens: 64 of an image's 576 reach the language model, by three methods, and what it answers then."""

import tokensieve as ts
from tokensieve import testbed

model, processor = testbed.load()  # or any LLaVA-like model, as transformers loads it
item = testbed.test_set(n_scenes=1, questions_per_kind=1)[0]
inputs = processor(images=[item.image], text=[testbed.prompt(item.question.text)], return_tensors="pt")
print(f"{item.question.text} The right answer: {item.question.answer}")

for method in ("random", "visionzip", "divprune"):
    with ts.sieve(model, method, keep=64) as s:  # the model is what it was afterwards
        out = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    answer = processor.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0]
    share = ts.cost(model, ts.Plan([ts.stage(method, keep=64)]), tokens=576).share
    print(f"{method:10} {answer.strip():10} {s.last.layer_tokens[0]:.0f} tokens, {share:.0%} of the FLOPs")
