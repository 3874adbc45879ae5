"""A method of one's own: written, checked by the contract, and run in a model, in one file."""

from dataclasses import dataclass

import tokensieve as ts
from tokensieve import testbed
from tokensieve.parts import select
from tokensieve.testing import check_method


@ts.register_method("apart")
@dataclass(frozen=True)
class Apart(ts.Method):
    """Keeps the tokens farthest from the mean of their image."""

    favours = ("unlike",)  # what a high score means, which the contract checks
    power: float = ts.option(2.0, "of the differences that are summed", above=0)

    def score(self, s: ts.Signals):
        valid = s.valid[:, :, None]
        mean = (s.features * valid).sum(1, keepdim=True) / valid.sum(1, keepdim=True).clamp_min(1)
        return (s.features - mean).abs().pow(self.power).sum(-1)

    def reduce(self, s: ts.Signals, keep) -> ts.Reduction:
        return ts.Reduction.keep(select.top(self.score(s), keep, s.valid))


check_method(Apart)  # budgets, padding, rows, ties, gradients, memory, options: it says what does not hold
model, processor = testbed.load()
item = testbed.test_set(n_scenes=1, questions_per_kind=1)[0]
inputs = processor(images=[item.image], text=[testbed.prompt(item.question.text)], return_tensors="pt")
with ts.sieve(model, "apart", keep=64, power=1.0) as s:
    model.generate(**inputs, max_new_tokens=4, do_sample=False)
print(f"apart is a method: {'apart' in ts.list_methods()}; layers held {s.last.layer_tokens[0]:.0f} tokens")
