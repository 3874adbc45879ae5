"""Devices and precisions by name, and the errors of what is not there."""

import pytest
import torch

from tokensieve.bench import loading
from tokensieve.bench.loading import device_of, dtype_of, from_hub, language_model, several


class Here:
    """Stands in for a machine with some accelerator, or none."""

    def __init__(self, kind, count=1, fast=True):
        self.kind, self.count, self.fast = kind, count, fast

    def set(self, monkeypatch):
        found = None if self.kind is None else torch.device(self.kind)
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: found is not None)
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: found)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: self.count)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: self.fast)


@pytest.mark.parametrize(
    ("here", "device", "dtype", "spread"),
    [
        (Here(None), "cpu", torch.float32, False),
        (Here("cuda"), "cuda", torch.bfloat16, False),
        (Here("cuda", fast=False), "cuda", torch.float32, False),
        (Here("cuda", count=4), "cuda", torch.bfloat16, True),
        (Here("mps"), "mps", torch.bfloat16, False),
    ],
)
def test_auto_takes_what_there_is(monkeypatch, here, device, dtype, spread):
    here.set(monkeypatch)
    assert device_of("auto") == device
    assert dtype_of("auto", device) == dtype
    assert several("auto", device) is spread
    assert not several(device, device)


def test_what_is_not_there_is_said(monkeypatch):
    Here(None).set(monkeypatch)
    with pytest.raises(ValueError, match=r"--device cuda: it is not here; this machine has a CPU only"):
        device_of("cuda")
    with pytest.raises(ValueError, match="--device quantum"):
        device_of("quantum")
    with pytest.raises(ValueError, match="--dtype int8: it must be float32, bfloat16, float16 or auto"):
        dtype_of("int8", "cpu")
    Here("cuda").set(monkeypatch)
    assert device_of("cuda:0") == "cuda:0"
    with pytest.raises(ValueError, match="this machine has cpu and cuda"):
        device_of("mps")


def test_several_gpus_share_a_model(monkeypatch):
    Here("cuda", count=2).set(monkeypatch)
    asked = {}

    class Auto:
        @staticmethod
        def from_pretrained(name, **given):
            asked.update(given)
            return torch.nn.Linear(1, 1)

    assert not from_hub([Auto], "some/model", "auto", "auto").training
    assert asked == {"device_map": "auto", "dtype": torch.bfloat16, "use_safetensors": True}


def test_models_that_cannot_be_loaded_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "device_of", lambda asked: "cpu")
    with pytest.raises(ValueError, match="cannot load"):
        language_model(str(tmp_path), "cpu", "float32")
    with pytest.raises(ValueError, match="no language model that continues texts; take smollm2"):
        language_model("whisper", "cpu", "float32")

    class Unknown:
        @staticmethod
        def from_pretrained(name, **given):
            raise ValueError("Unrecognized configuration class <class 'X'> for this kind of AutoModel")

    with pytest.raises(ValueError, match="cannot load 'x' as Unknown or Unknown: Unrecognized configuration"):
        from_hub([Unknown, Unknown], "x", "cpu", "float32")
