"""The doctor: what it finds on models that work, on a library that is broken, and on models that a sieve refuses."""

import json
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
import yaml

from tests.test_cli import call
from tokensieve import extras, testbed
from tokensieve.bench.compat import cross, tiny_models
from tokensieve.bench.compat.check import Case
from tokensieve.cli.main import main
from tokensieve.sites.cache.eviction_site import CacheSite
from tokensieve.sites.encoder.site import EncoderSite
from tokensieve.sites.sieve import Sieve
from tokensieve.sites.visual.language_site import LanguageSite
from tokensieve.testing import doctor, doctor_models
from tokensieve.testing.doctor_models import Checked
from tokensieve.testing.doctor_sites import GONE, SHORT, WHOLE, trials

ROOT = Path(__file__).parent.parent
MISTRAL = transformers.MistralConfig(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=48, vocab_size=64,
    sliding_window=8, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
T5 = transformers.T5Config(
    d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, vocab_size=64, pad_token_id=0, eos_token_id=1,
    decoder_start_token_id=0,
)  # fmt: skip


@pytest.fixture(autouse=True)
def one_kernel(monkeypatch):
    """Tiny models under one kernel are enough for most tests."""
    monkeypatch.setattr(doctor_models, "KERNELS", ("sdpa",))


def found(of):
    return [f for trial in trials(of) for f in trial.findings()]


def tiny_model(kind):
    return doctor_models.tiny_models("cpu")[f"tiny {kind} model, sdpa"]()


def wrong(findings):
    return {(f.site, f.check): f for f in findings if f.status != "ok"}


def saved(folder, model):
    model.save_pretrained(folder)
    return str(folder)


# ---- what works -----------------------------------------------------------------------------------------------------


def test_every_kind_of_model_is_checked_under_every_kernel(monkeypatch):
    monkeypatch.undo()
    report = doctor.diagnose()
    assert report.ok
    assert {f.status for f in report.findings} == {"ok"}
    sites = ("handoff", "prefill", "encoder", "cache", "cache", "encoder")
    denoises = 3 * ("diffusion",) if find_spec("diffusers") else ()
    assert Counter(f.site for f in report.findings) == Counter(2 * 3 * sites + denoises)
    assert {f.check for f in report.findings} == {WHOLE, SHORT, GONE}
    assert not any(f.advice for f in report.findings)


def test_what_layers_held_is_said():
    """The longer prompt has 142 tokens, 128 of them of two pictures; three answered tokens are in the cache."""
    by = {(f.site, f.check): f.detail for f in found(tiny_model("visual"))}
    assert by["handoff", SHORT] == "145 x 4 -> 81 x 4"
    assert by["prefill", SHORT] == "145 x 4 -> 145 x 2, 81 x 2"
    assert by["cache", SHORT] == "145 x 4 -> 74 x 4"


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "gemma3", "llava_next", "idefics3"])
def test_no_architecture_is_accused_of_what_it_does_right(name):
    case = Case(name)
    findings = found(Checked(name, "visual", case.model, case.inputs))
    assert all(f.status == "ok" for f in findings if f.site in ("handoff", "prefill"))
    # Where all stay there is nothing to refuse.
    told = [f.status for f in findings if f.site == "encoder"]
    assert "refused" in told
    assert set(told) <= {"ok", "refused"}


def test_keys_of_images_are_counted_where_text_attends_to_them():
    case = cross.CrossCase("mllama")
    by = {(f.site, f.check): f.status for f in found(Checked("mllama", "visual", case.model, case.inputs))}
    assert [by["cross", what] for what in (WHOLE, SHORT, GONE)] == ["ok"] * 3


# ---- what is broken -------------------------------------------------------------------------------------------------


def nothing(*_):
    return lambda *_: None


@pytest.mark.parametrize(
    ("site", "hook", "failing", "kind"),
    [
        (LanguageSite, "_layer", ("prefill", SHORT), "visual"),
        (LanguageSite, "_enter", ("handoff", SHORT), "visual"),
        (CacheSite, "_layer", ("cache", SHORT), "text"),
        (EncoderSite, "_at_seam", ("encoder", SHORT), "encoder"),
    ],
)
def test_a_hook_that_does_nothing_is_noticed(monkeypatch, site, hook, failing, kind):
    quiet = {"_enter": lambda *_: None, "_at_seam": lambda self, index, hidden: hidden}.get(hook, nothing)
    monkeypatch.setattr(site, hook, quiet)
    assert wrong(found(tiny_model(kind)))[failing].status == "failed"


def test_the_one_layer_that_keeps_what_others_drop_is_named(monkeypatch):
    evict = CacheSite._evict
    monkeypatch.setattr(CacheSite, "_evict", lambda self, stage, i, *now: i == 2 or evict(self, stage, i, *now))
    bad = wrong(found(tiny_model("text")))
    assert bad["cache", SHORT].detail == "layer 2 holds 99 tokens, and not 51 (without a sieve 99)"


def test_a_result_that_is_off_by_little_is_noticed(monkeypatch):
    reduce = EncoderSite._reduce
    monkeypatch.setattr(EncoderSite, "_reduce", lambda self, *a: reduce(self, *a) * (1 + 1e-6))
    bad = wrong(found(tiny_model("encoder")))
    assert set(bad) == {("encoder", WHOLE)}
    assert "differs from the plain model's by up to" in bad["encoder", WHOLE].detail


def test_hooks_that_stay_are_noticed(monkeypatch):
    monkeypatch.setattr(Sieve, "__exit__", lambda self, *_: self._sites.undo.clear() or self.detach())
    bad = wrong(found(tiny_model("text")))
    assert "hooks or taps are left" in bad["cache", GONE].detail
    assert "--json" in bad["cache", GONE].advice


def test_an_exception_is_named_and_ends_nothing(monkeypatch):
    def broken(*_):
        raise KeyError("past_key_values")

    monkeypatch.setattr(CacheSite, "_layer", lambda self, i: broken)
    report = doctor.diagnose()
    bad = [f for f in report.findings if f.status == "failed"]
    assert {f.site for f in bad} == {"cache"}
    assert {f.detail for f in bad} == {"KeyError: 'past_key_values'"}
    assert len(report.findings) == 21
    assert not report.ok


def test_a_model_that_cannot_be_built_is_a_finding(monkeypatch):
    monkeypatch.setattr(tiny_models, "causal", lambda name: getattr(SimpleNamespace(), name))
    bad = [f for f in doctor.diagnose().findings if f.status == "failed"]
    assert [(f.model, f.site, f.check) for f in bad] == [("tiny text model, sdpa", "", doctor.BUILT)]
    assert bad[0].detail.startswith("AttributeError: ")


def test_a_refusal_of_our_own_models_is_a_failure(monkeypatch):
    def refuse(*_):
        raise ValueError("not on this release")

    monkeypatch.setattr("tokensieve.sites.table.decoder", refuse)
    of = tiny_model("text")
    assert wrong(found(of))["cache", WHOLE].status == "failed"


def test_a_value_error_of_the_model_is_no_refusal():
    of = tiny_model("text")
    theirs = Checked(
        "theirs", "text", of.model, {"input_ids": of.inputs["input_ids"], "no_such_argument": torch.ones(1)}
    )
    bad = wrong(found(theirs))["cache", WHOLE]
    assert bad.status == "failed"
    assert "no_such_argument" in bad.detail


# ---- what stands around ---------------------------------------------------------------------------------------------


def test_what_is_missing_of_an_extra_is_told_with_its_command(monkeypatch):
    installed = extras.version

    def version(name):
        if name == "optuna":
            raise extras.PackageNotFoundError(name)
        return "0.1" if name == "fastapi" else installed(name)

    monkeypatch.setattr(extras, "version", version)
    by = {e.name: e for e in extras.extras()}
    assert by["search"].missing == ("optuna>=4.2",)
    assert by["search"].install == "in the checkout of tokensieve: pip install '.[search]'"
    assert by["serve"].missing == ("fastapi>=0.115",)
    assert "dev" not in by
    assert "pip install '.[search]'" in call("doctor").output


def test_an_untested_release_is_said_and_is_no_failure(monkeypatch):
    monkeypatch.setattr(doctor, "TESTED", ("4.0.0",))
    out = call("doctor")
    assert f"transformers {transformers.__version__} is not among the releases that were tested: 4.0.0" in out.output
    assert out.exit_code == 0


# ---- the command ----------------------------------------------------------------------------------------------------


def test_the_command_prints_json_of_a_fixed_form(tmp_path):
    out = call("doctor", saved(tmp_path, tiny_models.causal("llama")), "--json")
    assert out.exit_code == 0
    report = json.loads(out.stdout)
    assert report["format"] == "tokensieve.doctor.1"
    assert set(report) == {
        "format", "ok", "tested", "tested_releases", "versions", "devices", "kernels", "extras", "findings",
    }  # fmt: skip
    assert set(report["versions"]) == {
        "python", "tokensieve", "torch", "transformers", "tokenizers", "safetensors", "diffusers",
    }  # fmt: skip
    assert "cpu" in report["devices"]
    names = [k["name"] for k in report["kernels"]]
    assert names == ["sdpa", "eager", "flash_attention_2", "flex_attention"]
    assert all(set(e) == {"name", "missing", "install"} for e in report["extras"])
    assert all(set(f) == {"model", "site", "check", "status", "detail", "advice"} for f in report["findings"])
    assert [f["status"] for f in report["findings"] if f["model"] == str(tmp_path)] == ["ok"] * 3


def test_a_failure_is_exit_code_one_and_says_what_to_do(monkeypatch):
    monkeypatch.setattr(CacheSite, "_layer", nothing)
    out = call("doctor")
    assert out.exit_code == 1
    assert "✗" in out.output
    assert "✓" in out.output
    assert "Do not use site='cache'" in " ".join(out.output.split())
    assert json.loads(call("doctor", "--json").stdout)["ok"] is False


@pytest.mark.slow
def test_a_vision_language_model_of_a_folder_is_checked_at_every_site():
    of = doctor_models.load(str(Path(testbed.__file__).parent / "llava"), "cpu")
    assert Counter((f.site, f.status) for f in found(of)) == Counter(
        {(site, "ok"): 3 for site in ("handoff", "prefill", "encoder", "cache")}
    )


def test_an_encoder_of_a_folder_is_checked(tmp_path):
    of = doctor_models.load(saved(tmp_path, tiny_model("encoder").model), "cpu")
    assert [(f.site, f.status) for f in found(of)] == [("encoder", "ok")] * 3


def test_an_encoder_of_text_is_checked(tmp_path):
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48, vocab_size=64
    )
    of = doctor_models.load(saved(tmp_path, transformers.BertModel(config)), "cpu")
    assert [f.detail for f in found(of) if f.check == SHORT] == ["96 x 3 -> 96, 81, 65"]


# ---- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["no/such/folder/anywhere", "", "a name with blanks"])
def test_a_model_that_is_nowhere_is_bad_usage(name):
    with pytest.raises(ValueError, match=f"cannot load '{name}'"):
        doctor.diagnose(name)


@pytest.mark.parametrize(("asked", "said"), [(["."], "cannot load '.'"), (["--device", "abacus"], "there are cpu")])
def test_bad_usage_is_exit_code_two(monkeypatch, capsys, asked, said):
    monkeypatch.setattr("sys.argv", ["tokensieve", "doctor", *asked])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert said in capsys.readouterr().err


def test_a_model_without_a_vision_part_is_checked_at_the_cache_alone(tmp_path):
    of = doctor_models.load(saved(tmp_path, tiny_models.causal("llama")), "cpu")
    assert {f.site for f in found(of)} == {"cache"}


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: transformers.MistralForCausalLM(MISTRAL), "none sees every token"),
        (lambda: transformers.T5ForConditionalGeneration(T5), "has an encoder and a decoder"),
    ],
)
def test_a_refusal_is_named_and_is_no_failure(tmp_path, make, why):
    out = call("doctor", saved(tmp_path, make()), "--json")
    assert out.exit_code == 0
    own = [f for f in json.loads(out.stdout)["findings"] if f["model"] == str(tmp_path)]
    assert [(f["site"], f["status"]) for f in own] == [("cache", "refused")]
    assert own[0]["detail"].startswith("ValueError: ")
    assert why in own[0]["detail"]
    assert "site='cache'" in own[0]["advice"]


def test_what_takes_neither_pictures_nor_text_is_bad_usage(tmp_path):
    config = transformers.Wav2Vec2Config(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, conv_dim=(8,), conv_stride=(5,),
        conv_kernel=(10,), num_feat_extract_layers=1, num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    name = saved(tmp_path, transformers.Wav2Vec2Model(config))
    with pytest.raises(ValueError, match="takes input_values"):
        doctor_models.load(name, "cpu")


def test_damaged_weights_are_bad_usage(tmp_path):
    name = saved(tmp_path, tiny_models.causal("llama"))
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ValueError, match="cannot load"):
        doctor_models.load(name, "cpu")


def test_a_vision_language_model_without_its_processor_is_bad_usage(tmp_path):
    name = saved(tmp_path, tiny_models.model("llava"))
    with pytest.raises(ValueError, match="cannot load"):
        doctor_models.load(name, "cpu")


def test_bug_reports_are_asked_for_what_the_doctor_says():
    forms = {f.name: yaml.safe_load(f.read_text()) for f in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")}
    asked = {part["id"]: part for part in forms["bug.yml"]["body"]}
    assert "tokensieve doctor" in asked["doctor"]["attributes"]["description"]
    assert asked["doctor"]["validations"]["required"]
