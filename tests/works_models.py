"""Situations: what a model is made of, wrapped in, copied or compiled."""

from __future__ import annotations

import copy
import io
from typing import Any

import torch

import tokensieve as ts
from tests.works import SITES, VLM, Setting, situation
from tokensieve.bench.compat.check import Case


@situation("PEFT around the model", works=VLM, needs="peft")
def adapted(s: Setting) -> None:
    import peft

    lora = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    torch.manual_seed(0)
    model = peft.get_peft_model(s.make(), lora).eval()
    with s.sieve(model.base_model.model):
        want = s.answer(model)
    with s.sieve(model):
        assert torch.equal(s.answer(model), want)


@situation("Weights offloaded by accelerate", works=VLM, needs="accelerate")
def offloaded(s: Setting) -> None:
    from accelerate import cpu_offload

    model = s.make()
    cpu_offload(model, execution_device="cpu")
    with s.sieve(model):
        s.same(s.answer(model))


@situation("torchao int8 weights", works=VLM, needs="torchao")
def quantized(s: Setting) -> None:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model = s.make()
    quantize_(model, Int8WeightOnlyConfig())
    with s.sieve(model):
        got = s.logits(model)
    plain = s.make()
    with s.sieve(plain):
        near = s.logits(plain)
    assert torch.cosine_similarity(got[:, -1], near[:, -1]).item() > 0.9


@situation("autocast to bfloat16")
def autocast(s: Setting) -> None:
    model = s.make()
    with torch.autocast("cpu", torch.bfloat16):
        plain = s.logits(model)
        with s.sieve(model):
            got = s.logits(model)
        assert got.isfinite().all()
        with s.sieve(model, keep=1.0):
            torch.testing.assert_close(s.logits(model), plain)


@situation("float16 on a CPU")
def half(s: Setting) -> None:
    model = s.make().half()
    inputs = {k: v.half() if v.is_floating_point() else v for k, v in s.inputs.items()}
    with s.sieve(model):
        assert s.logits(model, **inputs).isfinite().all()


@situation("Gradient checkpointing", works=("encoder", "handoff", "prefill"))
def checkpointed(s: Setting) -> None:
    def gradient(model: Any) -> torch.Tensor:
        with s.sieve(model):
            model(**s.inputs, labels=s.inputs["input_ids"]).loss.backward()
        return model.get_decoder().layers[0].self_attn.q_proj.weight.grad

    plain, again = s.make(), s.make()
    again.train()
    again.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    torch.testing.assert_close(gradient(again), gradient(plain))


@situation("`Trainer`", works=("encoder", "handoff", "prefill"), needs="accelerate", slow=True)
def trained(s: Setting) -> None:
    import tempfile

    from transformers import Trainer, TrainingArguments

    model = s.make()
    one = {k: v[0] for k, v in s.inputs.items()} | {"labels": s.inputs["input_ids"][0]}
    with s.sieve(model), torch.no_grad():
        want = model(**s.inputs, labels=s.inputs["input_ids"]).loss.item()
    with tempfile.TemporaryDirectory() as folder, s.sieve(model):
        options = TrainingArguments(
            folder, max_steps=1, per_device_train_batch_size=1, use_cpu=True, report_to=[], logging_steps=1, save_strategy="no",
            disable_tqdm=True,
        )  # fmt: skip
        trainer = Trainer(model, options, train_dataset=[one])
        trainer.train()
    assert abs(trainer.state.log_history[0]["loss"] - want) < 1e-3


@situation("Padding-free, packed prompts", works=("encoder", "handoff", "prefill"))
def packed(s: Setting) -> None:
    from tests.models import prompt

    model, rows = s.make(), [prompt((1,), seed=i) for i in (1, 2)]
    both = {
        "input_ids": torch.cat([r["input_ids"] for r in rows], 1),
        "pixel_values": torch.cat([r["pixel_values"] for r in rows]),
        "position_ids": torch.cat([torch.arange(r["input_ids"].shape[1]) for r in rows])[None],
        "use_cache": False,
    }
    with s.sieve(model):
        ends = s.logits(model, **both)[0, [rows[0]["input_ids"].shape[1] - 1, -1]]
        for got, row in zip(ends, rows, strict=True):
            torch.testing.assert_close(got, s.logits(model, **row)[0, -1], atol=1e-4, rtol=1e-4)


@situation("Videos", works=("handoff", "prefill"), slow=True)
def videos(s: Setting) -> None:
    assert Case("qwen2_5_vl", video=True).dropping(2 if s.site == "prefill" else 0)


@situation("`copy.deepcopy` while attached", refused=SITES, guard="copy")
def copied(s: Setting) -> None:
    model = s.make()
    with s.sieve(model):
        copy.deepcopy(model)


@situation("`torch.save` of the model while attached", refused=SITES, guard="copy")
def pickled(s: Setting) -> None:
    model = s.make()
    with s.sieve(model):
        torch.save(model, io.BytesIO())


@situation("A copy made before or after")
def apart(s: Setting) -> None:
    model = s.make()
    with s.sieve(model):
        s.answer(model)
    other = copy.deepcopy(model)
    with s.sieve(other):
        s.same(s.answer(other))


@situation("flex_attention", refused=SITES, guard=("flex", "pairs"))
def flex(s: Setting) -> None:
    model = s.make()
    for part in model.modules():
        if hasattr(part, "config"):
            part.config._attn_implementation = "flex_attention"
    s.sieve(model).attach()


@situation("Weights on the meta device", refused=SITES, guard="meta")
def meta(s: Setting) -> None:
    s.sieve(s.make().to("meta")).attach()


@situation(
    "`model.forward` or the model compiled in place, before the sieve is attached", refused=SITES, guard="precompiled"
)
def compiled_before(s: Setting) -> None:
    model = s.make()
    if s.site == "handoff":
        model.compile(backend="eager")
    else:
        model.forward = torch.compile(model.forward, backend="eager")
    s.sieve(model).attach()


@situation("A forward replaced by one that knows nothing of the sieve", refused=SITES, guard="compiled")
def compiled(s: Setting) -> None:
    """As what is compiled goes past the hooks of the modules inside, so does the forward of another model."""
    model, other = s.make(), s.make()
    model.forward = other.forward
    with s.sieve(model):
        s.logits(model)


@situation(
    "Compiled attention in the encoder, under a method that reads it",
    refused=("encoder", "handoff"),
    guard="unheard",
)
def unheard(s: Setting) -> None:
    """As compiled attention goes past the taps, so does that of another model."""
    model, other = s.make(), s.make()
    own, others = (m.model.vision_tower.modules() for m in (model, other))
    for module, plain in zip(own, others, strict=True):
        if hasattr(module, "is_causal"):
            module.forward = plain.forward
    name, where = ("tome", {"layers": (1, 2)}) if s.site == "encoder" else ("fastervlm", {})
    where |= {"site": s.site}
    with ts.sieve(model, name, keep=16, **where):
        s.logits(model)


@situation("Continuous batching (`generate_batch`)", refused=SITES, guard="continuous")
def batched(s: Setting) -> None:
    model = s.make()
    with s.sieve(model):
        model.generate_batch(s.text["input_ids"].tolist(), max_new_tokens=2)


@situation("Continuous batching that began before the sieve", refused=SITES, guard="continuous")
def continuous(s: Setting) -> None:
    model = s.make()
    with s.sieve(model):
        model(**s.text, cache=object(), use_cache=False)  # as its loop calls a model
