"""A small decoder, a text, and what is asked of whatever changes its attention."""

import torch

from benchmarks.reference import decoder as tiny

SHAPE = tiny.Shape(width=32, layers=2, heads=4, groups=2, head=8, mlp=48)
TEXT = torch.randint(0, 50, (2, 24), generator=torch.Generator().manual_seed(3))


def decoder(seed=0):
    torch.manual_seed(seed)
    return tiny.Decoder(50, SHAPE).eval()


def singly(model, ids, attend=None, prompt=1):
    """Logits of a prompt in one call and of the tokens after it one by one, and the memory they leave."""
    memory = {}
    parts = [model(ids[:, :prompt], attend, memory)]
    parts += [model(ids[:, i : i + 1], attend, memory, i) for i in range(prompt, ids.shape[1])]
    return torch.cat(parts, 1), memory


def sees_no_future(logits_of, ids):
    """Changing a token changes no logits before it, and changes its own."""
    changed = ids.clone()
    changed[:, 15] = (changed[:, 15] + 1) % 50
    with torch.no_grad():
        a, b = logits_of(ids), logits_of(changed)
    torch.testing.assert_close(a[:, :15], b[:, :15], atol=1e-5, rtol=1e-5)
    assert (a[:, 15] - b[:, 15]).abs().max() > 1e-4
