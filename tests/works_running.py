"""Situations: how a model is called, run and wrapped."""

from __future__ import annotations

import threading
from typing import Any

import torch
from transformers import DynamicCache
from transformers.generation.streamers import BaseStreamer

from tests.models import SIDE, llava, prompt
from tests.works import GREEDY, SITES, THINNED, VISUAL, VLM, Setting, image_last, merged, situation, without
from tokensieve.sites.cache.sieved_layer import SievedLayer


class Streamer(BaseStreamer):
    """Calls a function with the number of each step of `generate`."""

    def __init__(self, step: Any):
        self.count, self.step = 0, step

    def put(self, value: torch.Tensor) -> None:
        self.count += 1
        self.step(self.count)

    def end(self) -> None:
        pass


@situation("Positional arguments", works=VLM)
def positional(s: Setting) -> None:
    model, x = s.make(), s.inputs
    with s.sieve(model):
        want = s.logits(model)
        placed = (x["input_ids"], x["pixel_values"], x["attention_mask"])
        torch.testing.assert_close(s.logits(model, *placed), want)
        with torch.no_grad():
            inner = model.lm_head(model.model(*placed).last_hidden_state)
        torch.testing.assert_close(inner, want)


@situation("Left padding, several pictures", works=SITES)
def padded(s: Setting) -> None:
    model = s.make()
    inputs = s.inputs if s.site == "cross" else prompt((1, 2))
    with s.sieve(model):
        both = s.answer(model, inputs)
        again = s.answer(model, inputs)
    assert torch.equal(both, again)


@situation("Beam search", works=without(SITES, "reading"))
def beams(s: Setting) -> None:
    model = s.make()
    with s.sieve(model):
        got = s.answer(model, num_beams=3)
        assert torch.equal(got, s.answer(model, num_beams=3))
    assert got.shape == s.want.shape


@situation("A second turn", works=without(SITES, "cross"))
def turns(s: Setting) -> None:
    model = s.make()
    with s.sieve(model):
        first = s.answer(model, return_dict_in_generate=True)
        more = torch.cat([first.sequences, s.text["input_ids"]], 1)
        x = {"input_ids": more, "attention_mask": torch.ones_like(more), "past_key_values": first.past_key_values}
        got = s.answer(model, x)
    assert torch.equal(got[:, : s.want.shape[1]], s.want)


@situation("A second turn whose picture is kept whole", works=("handoff", "prefill"))
def whole(s: Setting) -> None:
    model = s.make()
    with s.sieve(model):
        first = s.answer(model, return_dict_in_generate=True)
    next_one = prompt((1,), seed=3)
    ids = torch.cat([first.sequences, next_one["input_ids"]], 1)
    past = first.past_key_values
    x = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": next_one["pixel_values"]}
    with s.sieve(model, keep=1.0) as sieve:
        s.answer(model, {**x, "past_key_values": past})
        assert sieve.last.layer_tokens == [64.0] * 4


@situation("Streaming from a thread", works=SITES)
def streaming(s: Setting) -> None:
    model, out = s.make(), []
    with s.sieve(model):
        worker = threading.Thread(target=lambda: out.append(s.answer(model, streamer=Streamer(lambda n: None))))
        worker.start()
        worker.join()
    s.same(out[0])


@situation("`transformers.pipeline`", works=VLM)
def pipelined(s: Setting) -> None:
    from PIL import Image
    from transformers import CLIPImageProcessorPil, LlavaProcessor, pipeline

    from tokensieve.testbed.model import tokenizer

    special = ("<pad>", "<s>", "</s>", "<unk>", "<sep>", "<image>")
    side = {"height": SIDE * 4, "width": SIDE * 4}
    pictures = CLIPImageProcessorPil(size=side, crop_size=side)
    words = tokenizer((*special, *(f"w{i}" for i in range(len(special), 64))))
    processor = LlavaProcessor(
        pictures, words, patch_size=4, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )
    model, image, text = s.make(), Image.effect_noise((SIDE * 4, SIDE * 4), 80).convert("RGB"), "w9 w8 <image> w20 w31"
    run = pipeline("image-text-to-text", model=model, processor=processor)
    inputs = processor(images=image, text=text, return_tensors="pt")
    with s.sieve(model):
        got = run(image, text=text, generate_kwargs=GREEDY)[0]["generated_text"]
        want = s.answer(model, inputs)
    assert got.endswith(words.decode(want[0, -6:], skip_special_tokens=True)), (got, want[0, -6:])


@situation("`use_cache=False`", works=without(SITES, "reading"))
def uncached(s: Setting) -> None:
    model = s.make()
    if s.site == "cache":  # there is nothing to evict from: the plain answer, and a warning
        plain = s.answer(model)
    with s.sieve(model):
        got = s.answer(model, use_cache=False)
    if s.site == "cache":
        assert torch.equal(got, plain)
    else:
        s.same(got)


@situation("Prompt lookup", works=("encoder", "handoff", "prefill", "focus"))
def lookup(s: Setting) -> None:
    model = s.make()
    with s.sieve(model):
        s.same(s.answer(model, prompt_lookup_num_tokens=3))


@situation("Assisted decoding", works=("encoder", "handoff", "prefill", "focus"))
def assisted(s: Setting) -> None:
    model = s.make()
    with s.sieve(model):
        s.same(s.answer(model, assistant_model=llava(seed=1)))


@situation("Contrastive search", refused=SITES, guard="contrastive")
def contrastive(s: Setting) -> None:
    model = s.make()
    with s.sieve(model):
        s.same(s.answer(model, penalty_alpha=0.6, top_k=1))  # which is greedy search
        s.answer(model, penalty_alpha=0.6, top_k=4)


@situation(
    "Prefill in chunks that cut a picture",
    refused=("handoff", "prefill"),
    says="prefill_chunk_size",
)
def chunked(s: Setting) -> None:
    model = s.make()
    with s.sieve(model):
        s.answer(model, prefill_chunk_size=16)


@situation("A prompt that ends in an image", works=without(VLM, "encoder"), refused=("encoder",), guard="ending")
def ending(s: Setting) -> None:
    model, inputs = s.make(), image_last(seed=1)
    with s.sieve(model) as sieve:
        got = s.answer(model, inputs)
        assert torch.equal(got, s.answer(model, inputs))
        if s.site in ("handoff", "prefill"):
            step = sieve.last.stages[-1].reduction
            assert (step.kept[0, -1], step.m) == (63, 16)


@situation("Embeddings with pictures beside them", works=VLM)
def embedded(s: Setting) -> None:
    model = s.make()
    with s.sieve(model):
        want = s.logits(model)
        x = dict(s.inputs)
        x["inputs_embeds"] = model.get_input_embeddings()(x.pop("input_ids"))
        torch.testing.assert_close(s.logits(model, **x), want)


@situation(
    "Features that the caller merged",
    works=("cache", "reading"),
    refused=("encoder", "handoff", "prefill", "focus"),
    guard="merged",
)
def by_the_caller(s: Setting) -> None:
    model = s.make()
    with s.sieve(model):
        want = s.logits(model)
        torch.testing.assert_close(s.logits(model, **merged(s, model)), want)


@situation("Text without a picture")
def text_only(s: Setting) -> None:
    model, text = s.make(), s.text
    plain = s.answer(model, text)
    with s.sieve(model):
        assert torch.equal(s.answer(model, text), plain)


@situation("One token, or a batch of none")
def little(s: Setting) -> None:
    model = s.make()
    one = {k: v[:, -1:] for k, v in s.text.items()}
    none = {k: v[:0] for k, v in s.text.items()}
    with torch.no_grad():
        plain, empty = model(**one).logits, _error(model, none)
        with s.sieve(model):
            torch.testing.assert_close(model(**one).logits, plain)
            assert _error(model, none) == empty


def _error(model: Any, inputs: Any) -> str:
    """What the model itself says to a batch of none."""
    try:
        return str(model(**inputs).logits.shape)
    except RuntimeError as error:
        return str(error)


@situation("`output_attentions`", works=VISUAL)
def attentions(s: Setting) -> None:
    """Of the tokens that are there: a pass with fewer tokens has smaller maps."""
    model = s.make("eager")
    with torch.no_grad(), s.sieve(model) as sieve:
        out = model(**s.inputs, output_attentions=True)
    if s.site in ("encoder", "handoff", "prefill"):
        length = s.inputs["input_ids"].shape[1]
        kept = [length - 64 + round(n) for n in sieve.last.layer_tokens]
        assert [a.shape[-1] for a in out.attentions] == kept


@situation("A pass that breaks off, and the next call")
def broken_off(s: Setting) -> None:
    model = s.make()
    layers = [m for n, m in model.named_modules() if n.endswith("language_model.layers.2")]
    with s.sieve(model):
        handle = layers[0].register_forward_pre_hook(lambda *_: 1 / 0)
        try:
            s.answer(model)
        except ZeroDivisionError:
            pass
        else:
            raise AssertionError("the hook did not run")
        handle.remove()
        s.same(s.answer(model))


@situation("Going on with the cache of a pass that broke off", refused=THINNED, guard="broken")
def broken_cache(s: Setting) -> None:
    model = s.make()
    layer = next(m for n, m in model.named_modules() if n.endswith("language_model.layers.3"))
    with s.sieve(model), torch.no_grad():
        cache = DynamicCache(config=model.config.get_text_config(decoder=True))
        model(**s.inputs, past_key_values=cache)
        handle = layer.register_forward_pre_hook(lambda *_: 1 / 0)
        more = {"input_ids": s.text["input_ids"][:, :1], "past_key_values": cache}
        try:
            model(**more)
        except ZeroDivisionError:
            handle.remove()
        model(**more)


@situation("`generate` in two threads", refused=SITES, guard="threads")
def threads(s: Setting) -> None:
    model, errors = s.make(), []

    def other() -> None:
        try:
            s.answer(model)
        except RuntimeError as error:
            errors.append(error)

    def step(count: int) -> None:
        if count == 2:
            worker = threading.Thread(target=other)
            worker.start()
            worker.join()

    layer = model.get_decoder().layers[-1] if hasattr(model, "get_decoder") else None
    assert layer is not None
    inside = []

    def hook(*_: Any) -> None:
        if not inside:
            inside.append(True)
            step(2)

    handle = layer.register_forward_pre_hook(hook)
    with s.sieve(model):
        got = s.answer(model)
    handle.remove()
    s.same(got)  # whoever came first is right
    if errors:
        raise errors[0]


@situation("Detaching while another thread runs the model", refused=SITES, guard="settling")
def detaching(s: Setting) -> None:
    model, out = s.make(), []
    begun, go = threading.Event(), threading.Event()

    def hook(*_: Any) -> None:
        begun.set()
        assert go.wait(60)

    handle = model.get_decoder().layers[-1].register_forward_pre_hook(hook)
    sieve = s.sieve(model).attach()
    worker = threading.Thread(target=lambda: out.append(s.answer(model)))
    worker.start()
    assert begun.wait(60)
    try:
        sieve.detach()
    finally:
        go.set()
        worker.join()
        handle.remove()
        sieve.detach()
        s.same(out[0])


@situation("Leaving the sieve in the middle of `generate`", refused=THINNED, guard="unread")
def leaving(s: Setting) -> None:
    model = s.make()
    sieve = s.sieve(model).attach()
    try:
        s.answer(model, streamer=Streamer(lambda n: sieve.detach() if n == 3 else None))
    finally:
        sieve.detach()


@situation("Reading a limited cache without its sieve", refused=("focus",), guard="unlimited")
def unlimited(s: Setting) -> None:
    leaving(s)


@situation("A cache that was cut by hand", refused=THINNED, guard="sliced")
def sliced(s: Setting) -> None:
    model = s.make()
    with s.sieve(model), torch.no_grad():
        cache = model(**s.inputs).past_key_values
        for layer in (x for x in cache.layers if isinstance(x, SievedLayer)):
            layer.keys, layer.values = layer.keys[:, :, 2:], layer.values[:, :, 2:]
        model(input_ids=s.text["input_ids"][:, :1], past_key_values=cache)


@situation("The cache of another model", refused=THINNED, guard="other model")
def foreign(s: Setting) -> None:
    model, other = s.make(), s.make(seed=1)
    with s.sieve(model), s.sieve(other), torch.no_grad():
        cache = model(**s.inputs).past_key_values
        other(input_ids=s.text["input_ids"][:, :1], past_key_values=cache)


@situation("The cache of another budget", works=THINNED)
def other_budget(s: Setting) -> None:
    model = s.make()
    with s.sieve(model):
        first = s.answer(model, return_dict_in_generate=True)
    more = torch.cat([first.sequences, s.text["input_ids"]], 1)
    x = {"input_ids": more, "attention_mask": torch.ones_like(more)}
    with s.sieve(model, keep=30):
        got = s.answer(model, {**x, "past_key_values": first.past_key_values})
    assert got.shape[1] == more.shape[1] + GREEDY["max_new_tokens"]
