"""A smaller KV cache: a prompt is read in chunks, a quarter of its entries stays, is saved, and answers afterwards."""

import tempfile
from pathlib import Path

import torch

import tokensieve as ts
from tokensieve.testbed import lm

llm, tokenizer = lm.load()  # or any causal language model, as transformers loads it
text = "".join(d.text for d in lm.held_out())[:6000]
prompt = tokenizer(text, return_tensors="pt").input_ids[:, :1024]

whole = ts.prefill(llm, {"input_ids": prompt}, chunk=256)
with ts.sieve(llm, "snapkv", keep=0.25):
    prefix = ts.prefill(llm, {"input_ids": prompt}, chunk=256)
print(f"{ts.cache_bytes(prefix):,} bytes instead of {ts.cache_bytes(whole):,}")

with tempfile.TemporaryDirectory() as folder, ts.sieve(llm, ts.Plan([])):  # evicts nothing more
    ts.save_cache(prefix, Path(folder) / "prefix.safetensors")
    held = ts.load_cache(Path(folder) / "prefix.safetensors", llm)
    question = torch.cat([prompt, tokenizer("\n\n    def", return_tensors="pt").input_ids], 1)
    out = llm.generate(question, past_key_values=held, max_new_tokens=16, do_sample=False)
print(repr(tokenizer.decode(out[0, prompt.shape[1] :])))
