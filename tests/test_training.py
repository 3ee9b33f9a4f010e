"""Data, metrics and the training loop of the bundled model, on small pictures made here."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from diinn_fast import DIINN, data, evaluate, metrics, training


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for n in range(3):
        pixels = rng.integers(150, 256, (70 + n, 90, 3), dtype=np.uint8)  # bright: a first thing to learn
        Image.fromarray(pixels).resize((220, 210), Image.Resampling.BICUBIC).save(folder / f"{n}.png")
    return folder


def test_degrade_is_pillows_antialiased_bicubic():
    hr = torch.rand(3, 37, 50)
    lr = data.degrade(hr, (12, 17))
    pil = Image.fromarray((hr.permute(1, 2, 0).numpy() * 255 + 0.5).astype(np.uint8))
    want = np.asarray(pil.resize((17, 12), Image.Resampling.BICUBIC)).astype(np.float32) / 255
    assert np.abs(lr.permute(1, 2, 0).numpy() - want).max() < 2.5 / 255
    assert torch.equal((lr * 255).round(), lr * 255) or ((lr * 255).round() - lr * 255).abs().max() < 1e-4


def test_samples_are_the_hr_pixels_and_depend_on_seed_and_step_only(photos):
    pool = list(data.load_photos(photos, 64).values())
    sampler = data.CropSampler(pool, lr_size=16, samples=50)
    groups, again, other = (sampler.groups(1, step, 3, 2) for step in (7, 7, 8))
    for group, twin in zip(groups, again, strict=True):
        assert torch.equal(group.lr, twin.lr) and torch.equal(group.rgb, twin.rgb) and group.size == twin.size
        assert group.lr.shape == (2, 3, 16, 16) and group.rgb.shape == (*group.yx.shape[:2], 3)
        assert 16 <= group.size[0] <= 64 and group.yx.max() < group.size[0]
    assert not torch.equal(groups[0].rgb, other[0].rgb)
    code = torch.tensor([65536, 256, 1])  # one number per colour
    colours = torch.cat([(photo.flatten(1).T.long() * code).sum(1) for photo in pool])
    assert torch.isin(((groups[0].rgb * 255).round().long() * code).sum(-1), colours).all()


def test_bad_photos_are_reported_by_name(photos):
    Image.new("RGB", (40, 300)).save(photos / "narrow.png")
    with pytest.raises(ValueError, match=r"narrow\.png is 40x300"):
        data.load_photos(photos, 64)
    (photos / "narrow.png").write_bytes((photos / "0.png").read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"narrow\.png cannot be decoded"):
        data.load_photos(photos, 64)
    with pytest.raises(ValueError, match="no images"):
        data.load_photos(photos.parent, 64)


def run(photos, out, steps, *more):
    arguments = ["--data", photos, "--out", out, "--steps", steps, "--every", 3, "--lr-size", 8, "--samples", 16]
    training.main([str(a) for a in [*arguments, "--hold-out", 0, "--groups", 2, *more]])
    return torch.load(out / "last.pt", weights_only=True)


def test_an_interrupted_run_resumes_exactly(photos, tmp_path, monkeypatch):
    whole = run(photos, tmp_path / "whole", 6)
    step, calls = training.train_step, []

    def dies(*arguments):
        calls.append(0)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return step(*arguments)

    monkeypatch.setattr(training, "train_step", dies)
    with pytest.raises(KeyboardInterrupt):
        run(photos, tmp_path / "parts", 6)
    monkeypatch.setattr(training, "train_step", step)
    resumed = run(photos, tmp_path / "parts", 6)
    for name, value in whole["model"].items():
        assert torch.equal(resumed["model"][name], value), name
    assert [json.loads(row)["step"] for row in (tmp_path / "parts" / "log.jsonl").read_text().splitlines()] == [3, 6]


def test_training_lowers_the_loss_and_exports_a_model(photos, tmp_path, monkeypatch):
    losses, step = [], training.train_step
    monkeypatch.setattr(training, "train_step", lambda *a: losses.append(step(*a)) or losses[-1])
    run(photos, tmp_path / "run", 24, "--rate", 0.02)  # the warm-up is 200 steps long
    assert sum(losses[-4:]) < 0.8 * sum(losses[:4])
    model = DIINN.from_pretrained(tmp_path / "run" / "model")
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 8, 8), (20, 20)).isfinite().all()


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_state(photos, tmp_path, monkeypatch):
    run(photos, tmp_path / "run", 3)
    monkeypatch.setattr(training, "train_step", lambda *a: math.nan)
    with pytest.raises(SystemExit, match="loss is nan at step 3"):
        run(photos, tmp_path / "run", 6)
    assert torch.load(tmp_path / "run" / "last.pt", weights_only=True)["step"] == 3


def test_psnr_y_is_luma_without_the_border():
    hr = torch.rand(1, 3, 20, 30)
    sr = hr.clone()
    sr[..., :2, :] = 0  # the border is left out
    assert metrics.psnr_y(sr, hr, 2) == math.inf
    sr = hr + torch.tensor([0.1, 0.0, 0.0]).view(3, 1, 1)
    assert metrics.psnr_y(sr, hr, 2) == pytest.approx(-20 * math.log10(0.1 * 65.738 / 256), abs=1e-3)


def test_bicubic_scores_as_an_independent_computation(photos):
    image = data.load_photos(photos, 64)["0.png"]
    hr = image[:, :208, :220].permute(1, 2, 0).numpy().astype(np.float64) / 255
    lr = data.degrade(image[None, :, :208, :220].float() / 255, (52, 55))
    sr = torch.nn.functional.interpolate(lr, (208, 220), mode="bicubic", antialias=True).clamp(0, 1)
    difference = (sr[0].permute(1, 2, 0).double().numpy() - hr) @ np.array([65.738, 129.057, 25.064]) / 256
    want = -10 * np.log10((difference[4:-4, 4:-4] ** 2).mean())
    assert evaluate.mean_psnr_y(evaluate.bicubic, [image], 4) == pytest.approx(want, abs=1e-4)
