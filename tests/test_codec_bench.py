"""The bench of tokenizers: data, metrics, baselines, rows, resuming, bad input, the page; small sizes and few steps."""

import json
import math
import re
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import wavfile
from typer.testing import CliRunner

import tokensieve as ts
from tests.test_quantizers import CASES
from tokensieve.bench.codec import autoencoder, classic, coded, judge, pictures, run, signals, specs, table, verdict
from tokensieve.bench.codec import distortion as d
from tokensieve.bench.codec.page import page
from tokensieve.bench.codec.run import Config
from tokensieve.cli.main import app
from tokensieve.codec import statistics
from tokensieve.codec.usage import usage


@pytest.fixture
def photos(tmp_path):
    """A folder of 20 small images of two kinds, and one that cannot be read."""
    draw = np.random.default_rng(0)
    for i in range(20):
        base = draw.integers(0, 255, (3, 3, 3) if i % 2 else (6, 2, 3), dtype=np.uint8)
        folder = tmp_path / "photos" / ("even", "odd")[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(base).resize((40, 36), Image.Resampling.BICUBIC).save(folder / f"{i:02d}.png")
    (tmp_path / "photos" / "odd" / "broken.png").write_bytes(b"no image")
    return tmp_path / "photos"


@pytest.fixture
def plain(monkeypatch):
    """Features that cost nothing, in place of the packaged encoder, and small baselines."""
    monkeypatch.setattr(run, "features", lambda kind, rate: ("mean colours", lambda x: x.mean((2, 3))))
    monkeypatch.setattr(coded, "STEPS", 2)
    monkeypatch.setattr(run, "MOST_BASELINE_BITS", 6)


def small(data, out, *tokenizers, **more):
    return Config(data, tokenizers, more.pop("tokens", (16,)), out, size=16, steps=more.pop("steps", 20), **more)


# ---- data ---------------------------------------------------------------------------------------------------------------


def test_a_folder_is_read_cut_square_split_and_labelled(photos):
    held = signals.folder(photos, 16)
    assert held.train.shape == (16, 3, 16, 16)
    assert held.test.shape == (4, 3, 16, 16)
    assert list(held.skipped) == ["odd/broken.png"]
    assert "UnidentifiedImageError" in held.skipped["odd/broken.png"]
    assert held.labels is not None
    assert [int(label) for label in held.labels[1]] == [int(n.startswith("odd")) for n in held.names]
    again = signals.folder(photos, 16)
    assert torch.equal(again.test, held.test)
    assert again.mark == held.mark != signals.folder(photos, 8).mark


def test_sixteen_bits_are_not_cut_off_and_orientation_is_kept(tmp_path):
    ramp = np.linspace(0, 65535, 32 * 32).reshape(32, 32)
    for i in range(10):
        Image.fromarray(ramp.astype(np.uint16)).save(tmp_path / f"{i}.png")
    turned = Image.fromarray((ramp / 257).astype(np.uint8)).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    turned.save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(ramp.astype(np.float32)).save(tmp_path / "float.tif")
    held = signals.folder(tmp_path, 32)
    every = torch.cat([held.train, held.test])
    assert list(held.skipped) == ["float.tif"]
    assert "range is not known" in held.skipped["float.tif"]
    assert float(every.mean()) == pytest.approx(0.5, abs=0.01)
    upright = torch.tensor(ramp / 65535, dtype=torch.float32)
    apart = [float((image[0] - upright).abs().max()) for image in every]
    assert sum(a < 0.01 for a in apart) == 10
    assert sum(float((image[0] - upright.flip(0, 1)).abs().max()) < 0.01 for image in every) == 1


def wave(file, rate, seconds=2.0, dtype=np.int16):
    t = np.arange(int(rate * seconds)) / rate
    wavfile.write(file, rate, (0.5 * np.sin(2 * np.pi * 200 * t) * np.iinfo(dtype).max).astype(dtype))


def test_speech_is_cut_into_pieces_and_all_of_a_file_is_on_one_side(tmp_path):
    for i in range(8):
        wave(tmp_path / f"{i}.wav", 16000, 3.2)
    wavfile.write(tmp_path / "silent.wav", 16000, np.full(20000, np.nan, dtype=np.float32))
    wavfile.write(tmp_path / "short.wav", 16000, np.zeros(100, dtype=np.int16))
    held = signals.folder(tmp_path, 64)
    assert "samples that are not finite" in held.skipped["silent.wav"]
    assert "100 samples; a piece is 16384" in held.skipped["short.wav"]
    assert (held.kind, held.rate, held.train.shape[1:]) == ("speech", 16000, (1, 1, signals.LENGTH))
    assert len(held.train) + len(held.test) == 8 * 3
    assert float(held.train.abs().max()) == pytest.approx(0.5, abs=0.01)
    files = {n.split(" ")[0] for n in held.names}
    assert len(held.test) == 3 * len(files)


def test_data_that_cannot_be_is_refused_by_name(tmp_path, photos):
    with pytest.raises(ValueError, match="is no folder"):
        signals.folder(tmp_path / "nothing", 16)
    for i in range(3):
        wave(tmp_path / f"{i}.wav", 16000)
    with pytest.raises(ValueError, match="holds images and speech"):
        signals.folder(tmp_path, 16)
    other = tmp_path / "few"
    other.mkdir()
    with pytest.raises(ValueError, match="holds 0 readable"):
        signals.folder(other, 16)
    for i in range(6):
        wave(other / f"{i}.wav", 16000)
        wave(other / f"{i}b.wav", 8000, 4)
    with pytest.raises(ValueError, match=r"0\.wav has 16000 Hz, 0b\.wav 8000 Hz; bring all to one rate"):
        signals.folder(other, 16)


def test_scenes_stand_in_for_a_folder():
    held = signals.scenes(10, 16)
    assert (held.train.shape, held.test.shape) == ((8, 3, 16, 16), (2, 3, 16, 16))


# ---- metrics ------------------------------------------------------------------------------------------------------------


def test_psnr_and_ssim_have_known_values():
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert d.psnr(x, x + 0.1, 1.0).tolist() == pytest.approx([20.0, 20.0], abs=1e-4)
    assert d.psnr(x, x, 1.0).tolist() == pytest.approx([100.0, 100.0])
    assert d.ssim(x, x).tolist() == pytest.approx([1.0, 1.0])
    flat = torch.full((1, 1, 16, 16), 0.5)
    assert float(d.ssim(flat, flat + 0.25)) == pytest.approx((2 * 0.5 * 0.75 + 1e-4) / (0.25 + 0.5625 + 1e-4), abs=1e-3)


def test_the_kernel_distance_is_zero_in_the_mean_and_sees_noise():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(300, 8, generator=draw)
    same = [
        d.kernel_distance(torch.randn(200, 8, generator=draw), torch.randn(200, 8, generator=draw))[0]
        for _ in range(20)
    ]
    assert abs(sum(same) / 20) < 60
    far, low, high = d.kernel_distance(x, x + 0.5)
    assert low < far < high
    assert low > d.noise_floor(x) > 0


def test_log_mel_hears_where_a_tone_is():
    t = torch.arange(16384) / 16000
    low, high = (torch.sin(2 * math.pi * f * t).view(1, 1, 1, -1) for f in (200.0, 4000.0))
    bands = d.log_mel(torch.cat([low, high]), 16000)[:, :40].argmax(1)
    assert bands[0] < bands[1]


def test_a_static_code_costs_what_its_frequencies_say():
    even = torch.arange(4).repeat(1, 100)
    assert float(statistics.static_bits(even, even[:, :8], 4)) == pytest.approx(16, abs=1e-6)
    assert (
        float(statistics.static_bits(torch.zeros(1, 999, dtype=torch.int64), torch.zeros(1, 8, dtype=torch.int64), 4))
        < 0.1
    )


def test_zipf_slopes_of_power_laws_and_of_even_use():
    ranks = torch.cat([torch.full((round(10_000 / r),), r) for r in range(1, 200)])
    assert statistics.zipf_slope(ranks) == pytest.approx(-1, abs=0.01)
    assert statistics.zipf_slope(torch.arange(50).repeat(4)) == pytest.approx(0, abs=1e-9)
    assert math.isnan(statistics.zipf_slope(torch.zeros(9, dtype=torch.int64)))


def test_other_statistics_of_sequences():
    even = torch.arange(16).repeat(64)
    assert statistics.entropy(even) == pytest.approx(4)
    assert statistics.innovation(even, 4)[-1] == (1024, 16)
    assert statistics.innovation(torch.arange(100), 2) == [(50, 50), (100, 100)]
    noise = torch.randint(1 << 16, (1024,), generator=torch.Generator().manual_seed(0))
    assert statistics.compression(even) > 5 * statistics.compression(noise)
    cycle = torch.arange(6).repeat(4, 20)
    assert statistics.ngram_perplexity(cycle, cycle, 6) < 1.3
    assert statistics.ngram_perplexity(cycle, cycle, 6, order=1) == pytest.approx(6, rel=0.05)


def test_the_small_model_learns_what_repeats(monkeypatch):
    monkeypatch.setattr(coded, "STEPS", 60)
    draw = torch.Generator().manual_seed(0)
    starts = torch.randint(8, (64, 1), generator=draw)
    cycle = (starts + torch.arange(16)) % 8
    noise = torch.randint(8, (64, 16), generator=draw)
    assert coded.modelled(cycle[:48], cycle[48:], 8, 0) < 1 < 2.5 < coded.modelled(noise[:48], noise[48:], 8, 0)


def test_a_tenth_of_the_codes_become_neighbours():
    q = ts.quantizer("fsq", levels=(5, 5))
    indices = torch.randint(5, (4, 25, 2), generator=torch.Generator().manual_seed(0))
    other = coded.swapped(indices, q.neighbours, 0)
    moved = (other - indices).abs().sum(-1)
    assert (moved > 0).sum() == 10
    assert moved.max() == 1


# ---- baselines ----------------------------------------------------------------------------------------------------------


def test_pca_spends_its_bits_and_more_bits_help():
    held = signals.scenes(60, 16)
    train, test = held.train, held.test
    errors = []
    for bits in (64, 1024):
        made = classic.pca(train, bits)
        assert 0 < made.spent((3, 16, 16)) <= bits
        errors.append(float((made.reconstruct(test) - test).square().mean()))
    assert errors[1] < errors[0] < float((train.mean(0) - test).square().mean())
    with pytest.raises(ValueError, match="too few"):
        classic.fewer(train, 2)


def test_fewer_values_keep_to_the_bits():
    train = signals.scenes(12, 16).train
    for bits in (100, 900):
        made = classic.fewer(train, bits)
        assert made.spent((3, 16, 16)) <= bits
        assert made.reconstruct(train).shape == train.shape


def test_files_are_the_best_that_fit_or_the_smallest():
    image = signals.scenes(10, 64).test[0]
    sizes = [classic.image_file(image, "WEBP", most)[1] for most in (1, 400, 1500)]
    assert 1 < sizes[0] <= sizes[1] <= 400 < sizes[2] <= 1500
    near = [float((classic.image_file(image, "JPEG", most)[0] - image).square().mean()) for most in (400, 1500)]
    assert near[1] < near[0]


# ---- autoencoders and specs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "tokens", "patches"),
    [((3, 64, 64), 256, (16, 16)), ((3, 64, 64), 128, (8, 16)), ((1, 1, 16384), 64, (1, 64))],
)
def test_tokens_are_laid_out_as_near_to_squares_as_can_be(shape, tokens, patches):
    assert sorted(autoencoder.grid(shape, tokens)) == sorted(patches)


def test_more_tokens_than_an_image_has_patches_are_refused():
    with pytest.raises(
        ValueError, match=r"tokens=100: no grid of so many patches covers 16 x 16 values, .*64, .*would"
    ):
        autoencoder.grid((3, 16, 16), 100)
    with pytest.raises(ValueError, match="tokens=512"):
        autoencoder.grid((3, 16, 16), 512)
    made = autoencoder.Autoencoder((3, 16, 16), 16, None)
    with pytest.raises(ValueError, match=r"signals of shape \(1, 3, 8, 8\); this tokenizer takes \(B, 3, 16, 16\)"):
        made.encode(torch.rand(1, 3, 8, 8))


@pytest.mark.parametrize("name", sorted(CASES))
def test_every_quantizer_is_fitted_and_comes_back_from_a_folder(name, tmp_path):
    number = {"fsq": "5,5", "quantile": "8"}.get(name, "8")
    q = specs.parse(f"{name}:{number}").quantizer(16, (3, 16, 16))
    made = autoencoder.Autoencoder((3, 16, 16), 16, q)
    train = signals.scenes(10, 16).train
    made.fit(train, 20, 0)
    back = autoencoder.load(made.save(tmp_path / "saved"))
    codes, again = made.encode(train[:2]), back.encode(train[:2])
    assert torch.equal(codes.indices, again.indices)
    assert torch.equal(made.decode(codes), back.decode(again.indices))
    assert specs.parse(str(tmp_path / "saved")).tokenizer().tokens == 16


@pytest.mark.slow
def test_training_repeats_and_learns():
    train = signals.scenes(10, 16).train
    errors = []
    for steps in (20, 20, 100):
        torch.manual_seed(0)
        made = autoencoder.Autoencoder((3, 16, 16), 16, ts.quantizer("fsq", levels=(8, 8, 8)))
        made.fit(train, steps, 0)
        errors.append(float((made.decode(made.encode(train)) - train).square().mean()))
    assert errors[0] == errors[1] > 1.2 * errors[2]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("vp:16", r"--tokenizer 'vp:16'.*"),
        ("nothing", r"is no quantizer .*no folder that --save wrote, no diffusers:PATH or .*module:function"),
        ("vq:1", r"--tokenizer 'vq:1': vq: codes=1"),
        ("vq:8,9", r"vq takes one number"),
        ("fsq:8,x", r"'x' is neither a whole number nor option=value"),
        ("vq:8,reviv=1", r"has no option 'reviv'; did you mean revive"),
        ("gsq:8,groups=3", r"groups=3 do not divide dim=16"),
    ],
)  # fmt: skip
def test_specs_are_refused_by_name(text, said):
    with pytest.raises(ValueError, match=said):
        specs.parse(text).tokenizer()


def test_options_and_lists_are_read():
    q = specs.parse("joint:32,dims=8/4,weights=1/0.5").quantizer(16, (3, 16, 16))
    assert (q.levels, q.dim, q.config["weights"]) == ((32,), 12, [1, 0.5])
    assert specs.parse("fsq:8,5,5,5").quantizer(16, (3, 16, 16)).levels == (8, 5, 5, 5)


# ---- runs ---------------------------------------------------------------------------------------------------------------


def own(monkeypatch, **tokenizers):
    module = ModuleType("my_tokenizers")
    vars(module).update(tokenizers)
    monkeypatch.setitem(sys.modules, "my_tokenizers", module)


class Half:
    """Half the brightness levels of the mean of each quarter: 4 tokens of 8 codes."""

    levels = (8,)

    def encode(self, x):
        return (x.mean(1).unfold(1, 8, 8).unfold(2, 8, 8).mean((3, 4)) * 7).round().long().flatten(1)

    def decode(self, codes):
        flat = (codes.float() / 7).view(-1, 1, 2, 2).expand(-1, 3, -1, -1)
        return torch.nn.functional.interpolate(flat, (16, 16))


def test_a_run_has_every_baseline_and_goes_on_where_it_stopped(photos, tmp_path, plain, monkeypatch):
    own(monkeypatch, make=Half)
    config = small(photos, tmp_path / "out", "fsq:5,5", "my_tokenizers:make")
    told = []
    results = run.run(config, lambda what, done, of: told.append((what, done / of)))
    rows = results["rows"]
    names = {r["name"] for r in rows.values()}
    assert names >= {
        "fsq:5,5",
        "my_tokenizers:make",
        run.CONTINUOUS,
        run.PUBLISHED,
        run.REVIVED,
        "PCA",
        "bicubic",
        "JPEG",
        "WebP",
    }
    assert told[0] == ("reading", 0)
    shares = [share for _, share in told[1:]]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    row = rows["fsq:5,5@16"]
    assert (row["tokens"], row["bits"]) == (16, pytest.approx(16 * math.log2(25)))
    assert len(row["psnr_each"]) == 4
    assert 0 <= row["probe"] <= 1
    assert 0 < row["used"] <= 1
    assert row["psnr_swapped"] <= row["psnr"] + 0.5
    mine = rows["my_tokenizers:make@own"]
    assert (mine["tokens"], mine["bits"], mine["own_rate"]) == (4, 12, True)
    assert mine["survival"] == 1
    assert f"PCA@{round(row['bits'])}bits" in rows
    monkeypatch.setattr(autoencoder.Autoencoder, "fit", None)  # nothing is left to be trained
    assert run.run(config)["rows"].keys() == rows.keys()
    with pytest.raises(ValueError, match=r"other settings \(steps\)"):
        run.run(small(photos, tmp_path / "out", "fsq:5,5", steps=21))


def test_an_interrupted_run_keeps_its_rows(photos, tmp_path, plain, monkeypatch):
    config, fit, calls = small(photos, tmp_path / "out", "fsq:5,5"), autoencoder.Autoencoder.fit, []

    def stops(self, *args):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return fit(self, *args)

    monkeypatch.setattr(autoencoder.Autoencoder, "fit", stops)
    with pytest.raises(KeyboardInterrupt):
        run.run(config)
    assert list(json.loads((tmp_path / "out" / "results.json").read_text())["rows"]) == [f"{run.CONTINUOUS}@16"]
    run.run(config)
    assert len(calls) == 2 + 3


def test_the_baseline_that_is_the_tokenizer_is_not_trained_again(photos, tmp_path, plain, monkeypatch):
    trained, fit = [], autoencoder.Autoencoder.fit
    monkeypatch.setattr(autoencoder.Autoencoder, "fit", lambda self, *a: trained.append(1) or fit(self, *a))
    rows = run.run(small(photos, tmp_path / "out", "vq:16"))["rows"]
    assert len(trained) == 3
    assert rows[f"{run.REVIVED}@16"]["psnr"] == rows["vq:16@16"]["psnr"]
    assert rows[f"{run.REVIVED}@16"]["role"] == "baseline"


@pytest.mark.slow
def test_saved_tokenizers_are_taken_again(photos, tmp_path, plain):
    first = run.run(small(photos, tmp_path / "a", "fsq:5,5", save=tmp_path / "saved"))["rows"]["fsq:5,5@16"]
    folder = tmp_path / "saved" / "fsq-5-5@16"
    again = run.run(small(photos, tmp_path / "b", str(folder)))["rows"][f"{folder}@own"]
    assert again["psnr"] == pytest.approx(first["psnr"])
    assert again["bits"] == first["bits"]


def test_a_tokenizer_that_raises_on_one_image_loses_only_that(photos, tmp_path, plain, monkeypatch):
    held = signals.folder(photos, 16)

    class Picky(Half):
        def encode(self, x):
            if any(torch.equal(one, held.test[2]) for one in x):
                raise RuntimeError("not this one")
            return super().encode(x)

    own(monkeypatch, make=Picky)
    row = run.run(small(photos, tmp_path / "out", "my_tokenizers:make"))["rows"]["my_tokenizers:make@own"]
    assert row["skipped"] == {held.names[2]: "RuntimeError: not this one"}
    assert [p is None for p in row["psnr_each"]] == [False, False, True, False]


def test_codes_survive_where_what_they_decode_to_is_taken_again():
    class Once(Half):
        def encode(self, x):
            if float(x.max()) > 0.5:
                raise RuntimeError("too bright")
            return super().encode(x)

    made = Once()
    back = torch.stack([torch.full((3, 16, 16), level / 7) for level in (1, 2, 6)])
    codes = torch.tensor([1, 3, 6]).view(3, 1, 1).expand(3, 4, 1)
    assert judge._survival(made, back, codes, "once") == 0.5
    assert judge._survival(made, back[2:], codes[2:], "once") is None


def test_a_tokenizer_that_is_none_or_contradicts_itself_is_refused(photos, tmp_path, plain, monkeypatch):
    class Short(Half):
        def decode(self, codes):
            return super().decode(codes)[..., :8]

    def changed(**methods):
        return type("Changed", (Half,), methods)

    own(
        monkeypatch, make=Short, nothing=lambda: 3, broken=changed(encode=lambda self, x: 1 / 0),
        blank=changed(decode=lambda self, codes: Half.decode(self, codes) / 0), many=changed(levels=(4,)),
        none=changed(encode=lambda self, x: Half.encode(self, x) * 0 - 1), parts=changed(levels=(8, 8)),
        uneven=changed(
            encode=lambda self, x: Half.encode(self, x)[:, : 4 if len(x) > 1 else 3],
            decode=lambda self, codes: torch.zeros(len(codes), 3, 16, 16),
        ),
    )  # fmt: skip
    monkeypatch.setattr(judge, "BATCH", 3)
    for name, said in (
        ("make", r"decodes \(3, 3, 16, 16\) to \(3, 3, 16, 8\)"),
        ("nothing", "gives int, which lacks encode or decode"),
        ("broken", "raises on every signal"),
        ("absent", "has no attribute 'absent'"),
        ("blank", "raises on every signal; .*what it decodes is not finite"),
        ("many", r"my_tokenizers:many: indices\[.*component 0 has codes 0 to 3"),
        ("parts", r"my_tokenizers:parts: indices of .* must be int64 \(\.\.\., 2\)"),
        ("none", "my_tokenizers:none gives -1, no token"),
        ("uneven", r"my_tokenizers:uneven gives codes \(4, 1\) for one signal and \(3, 1\) for another"),
    ):
        with pytest.raises(ValueError, match=said):
            run.run(small(photos, tmp_path / "out", f"my_tokenizers:{name}"))


def test_a_tokenizer_without_codes_has_dashes(photos, tmp_path, plain, monkeypatch):
    class Same:
        def encode(self, x):
            return x

        def decode(self, x):
            return x

    own(monkeypatch, make=Same)
    rows = run.run(small(photos, tmp_path / "out", "my_tokenizers:make"))["rows"]
    heads, cells, _ = table.table(rows, 4)
    line = dict(zip(heads, cells[list(rows).index("my_tokenizers:make@own")], strict=True))
    assert {line[h] for h in ("tokens", "bits", "bytes", "used", "Zipf", "LM", "survive")} == {"-"}
    assert line[""] == "own rate"


@pytest.mark.slow
def test_speech_runs_and_another_rate_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(coded, "STEPS", 2)
    draw = np.random.default_rng(0)
    (tmp_path / "speech").mkdir()
    for i in range(10):
        tone = np.sin(np.arange(16384) * draw.uniform(0.05, 0.4)) * 2**14
        wavfile.write(tmp_path / "speech" / f"{i}.wav", 16000, tone.astype(np.int16))

    class Audio(Half):
        rate = 24000

    own(monkeypatch, make=Audio)
    with pytest.raises(ValueError, match="takes speech of 24000 Hz; this has 16000 Hz"):
        run.run(small(tmp_path / "speech", tmp_path / "a", "my_tokenizers:make"))
    results = run.run(small(tmp_path / "speech", tmp_path / "b", "residual:16,stages=2", tokens=(64,)))
    row = results["rows"]["residual:16,stages=2@64"]
    assert results["features"] == "mean and deviation of log-mel bands"
    assert row["ssim"] is None
    assert row["bits"] == 64 * 8
    assert {"PCA", "fewer samples"} <= {r["name"] for r in results["rows"].values()}
    assert page(results, tmp_path / "b").is_file()


# ---- verdict, table, page, command --------------------------------------------------------------------------------------


def row(name, role, psnr, bits=3584, **more):
    base = {"name": name, "role": role, "psnr": sum(psnr) / len(psnr), "psnr_each": psnr, "bits": bits, "tokens": 256}
    return base | {"feature": 1.0, "feature_interval": (0.5, 2.0), "ssim": None} | more


def test_the_verdict_counts_only_sure_differences_and_files_that_fit():
    good, near = [25.0 + i % 3 for i in range(40)], [25.0 + (i * 7) % 4 - 0.6 for i in range(40)]
    rows = {
        "a@256": row("a", "tokenizer", good, asked_tokens=256),
        "b@256": row("b", "tokenizer", near, asked_tokens=256),
        "c@256": row("c", "tokenizer", [30.0] * 40, asked_tokens=256, collapsed=True),
        "PCA@3584bits": row("PCA", "baseline", [g + 1 for g in good], rate_bits=3584, tokens=None),
        "WebP@3584bits": row("WebP", "baseline", [g - 2 for g in good], rate_bits=3584, fits=[True] * 40, bits=3500),
        "JPEG@3584bits": row("JPEG", "baseline", [g - 9 for g in good], rate_bits=3584, fits=[False] * 40, bits=4800),
    }
    assert verdict.budgets(rows) == {3584: "256 tokens of 14 bits"}
    said = verdict.verdict(rows, 3584)
    assert said[0] == "Take a (448 bytes, 25.98 dB)."
    assert "Beside b (448 bytes) no sure difference" in said[1] or "Beside b (448 bytes) it is better" in said[1]
    assert "It is below PCA (448 bytes): -1.00 dB (-1.00 to -1.00)." in said
    assert "It beats WebP (438 bytes): +2.00 dB (+2.00 to +2.00)." in said
    assert "JPEG: its smallest files have 600 bytes, more than 448; not compared." in said
    heads, cells, meanings = table.table(rows, 40)
    assert len(meanings) == len(heads)
    assert "feature distance (of 40: few)" in heads
    assert "feature distance" in table.table(rows, 200)[0]
    notes = [line[-1] for line in cells]
    assert heads[-1] == ""
    assert notes[0] == "below PCA"
    assert notes[2] == "collapsed"
    assert notes[5] == "over 448 bytes in 40 of 40"


def test_a_difference_is_paired_and_passes_over_what_one_lacks():
    one = row("a", "tokenizer", [1.0, 2.0, 3.0])
    two = row("b", "tokenizer", [0.0, 1.0, 9.0]) | {"psnr_each": [0.0, None, 9.0]}
    gap = verdict.difference(one, two)
    assert (gap.mean, gap.count, gap.distinguishable) == (-2.5, 2, False)


def test_the_axis_names_sizes_that_stand_apart():
    assert pictures.apart([448.0, 445.0, 434.0, 224.0, 112.0, 300.0]) == [112.0, 224.0, 300.0, 448.0]
    assert pictures.apart([]) == []


def test_rates_within_a_hundredth_are_one():
    assert run.merged([640, 637, 500, 640]) == [640, 500]


def test_the_command_says_which_to_take_and_writes_a_page(photos, tmp_path, plain):
    out = tmp_path / "out"
    asked = ["codec", "bench", str(photos), "--tokenizer", "fsq:5,5", "--tokenizer", "vq:300", "--tokens", "16"]
    done = CliRunner().invoke(app, [*asked, "--size", "16", "--steps", "20", "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert re.search(r"At up to 16 bytes a signal \(16 tokens of 8\.229 bits\):", done.output)
    assert "Feature distance: unbiased kernel distance on mean colours" in done.output
    assert "Of 4 signals only: below 200 it says little" in done.output
    assert "while fitting vq:300@16: 256 vectors" in done.output
    html = (out / "report.html").read_text()
    assert html.count("data:image/png;base64,") > 8
    assert "broken.png" in html
    assert "<svg" in html
    assert "While fitting vq:300@16: 256 vectors" in html
    for wrong, said in (
        (["--tokens", "x"], "numbers, with commas"),
        (["--tokens", "0"], "at least 1"),
        (["--steps", "3"], "at least 20"),
    ):
        failed = CliRunner().invoke(app, [*asked, "--size", "16", "--out", str(out), *wrong])
        assert said in str(failed.exception)


def test_usage_counts_the_training_part_too():
    q = specs.parse("fsq:5,5").quantizer(16, (3, 16, 16))
    train, test = torch.zeros(3, 16, 2, dtype=torch.int64), torch.ones(1, 16, 2, dtype=torch.int64)
    said = coded.described(train, test, q.levels, 0)
    assert said["used"] == pytest.approx(2 / 25)
    assert said["perplexity"] == usage(test, q.levels).perplexity == 1


def test_indices_come_from_codes_and_from_whole_numbers_only():
    codes = ts.quantizer("fsq", levels=(5, 5))(torch.randn(2, 3, 2))
    assert judge.indices_of(codes) is codes.indices
    assert judge.indices_of(torch.zeros(2, 3, dtype=torch.int64)).shape == (2, 3, 1)
    assert judge.indices_of(torch.zeros(2, 3)) is None
