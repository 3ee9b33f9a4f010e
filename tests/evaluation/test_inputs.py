"""``diinn-fast eval --inputs``: what LR images suffer before a model sees them."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diinn_fast.cli import main
from diinn_fast.errors import UpscaleError
from diinn_fast.evaluation import load_candidate
from diinn_fast.evaluation.candidates import self_ensemble
from diinn_fast.evaluation.inputs import Inputs, parse_inputs
from tests.helpers.known_models import nearest_model, save

PHOTO = Path(__file__).parents[2] / "examples" / "coffee.png"


@pytest.fixture
def lr() -> torch.Tensor:
    pixels = np.array(Image.open(PHOTO).convert("RGB").crop((60, 60, 124, 100)))
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255


def levels(image: torch.Tensor) -> np.ndarray:
    return (image[0] * 255).round().byte().permute(1, 2, 0).numpy()


def test_clean_inputs_stay_as_they_are(lr: torch.Tensor) -> None:
    assert parse_inputs("clean")(lr, "a.png") is lr


def test_jpeg_is_what_pillow_makes_of_that_quality_with_half_chroma(lr: torch.Tensor) -> None:
    file = io.BytesIO()
    Image.fromarray(levels(lr)).save(file, "JPEG", quality=40, subsampling="4:2:0")
    expected = np.array(Image.open(file))
    assert np.array_equal(levels(parse_inputs("jpeg40")(lr, "a.png")), expected)


def test_noise_has_the_deviation_asked_for_and_is_the_same_for_every_model() -> None:
    grey = torch.full((1, 3, 100, 100), 128 / 255)
    noisy = parse_inputs("noise10")(grey, "a.png")
    assert float((noisy * 255 - 128).std()) == pytest.approx(10, abs=0.2)
    assert torch.equal(noisy, parse_inputs("noise10")(grey, "a.png"))
    assert not torch.equal(noisy, parse_inputs("noise10")(grey, "b.png"))
    assert levels(noisy).std() > 9  # still 8-bit levels
    assert torch.equal(noisy, torch.from_numpy(levels(noisy)).permute(2, 0, 1)[None] / 255)


@pytest.mark.parametrize("text", ["jpeg", "jpeg0", "jpeg101", "noise0", "noise-5", "blur2", ""])
def test_unknown_inputs_are_refused_with_what_there_is(text: str) -> None:
    with pytest.raises(UpscaleError, match="give clean, jpegQ"):
        parse_inputs(text)


@pytest.mark.long
def test_each_kind_of_inputs_has_its_own_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("Set").mkdir()
    Image.open(PHOTO).crop((60, 60, 140, 124)).save("Set/cup.png")
    model = save(nearest_model(), tmp_path / "nearest")
    options = f"--data Set --scales 2 --device cpu --out out -q --models NN={model}"
    inputs = "--inputs clean jpeg10 --self-ensemble"
    assert main(["eval", *options.split(), *inputs.split()]) == 0
    with Path("out/images.csv").open() as file:
        psnr = {
            (row["set"], row["model"]): float(row["value"])
            for row in csv.DictReader(file)
            if row["metric"] == "psnr"
        }
    assert set(psnr) == {(s, m) for s in ("Set", "Set-jpeg10") for m in ("NN", "NN+")}
    assert psnr["Set-jpeg10", "NN"] < psnr["Set", "NN"] - 1
    assert Path("out/Set-jpeg10-cup-x2.png").is_file()


def test_the_self_ensemble_is_the_mean_over_the_eight_symmetries(lr: torch.Tensor) -> None:
    """Of a model that adds the picture's left upper pixel to everything."""
    plain = load_candidate("bicubic", torch.device("cpu"))
    candidate = type(plain)("corner", lambda v, size: v + v[:, :, :1, :1], "-")
    corners = [lr[:, :, y, x] for y in (0, -1) for x in (0, -1)]
    expected = lr + torch.stack(corners).mean(0)[..., None, None]
    result = self_ensemble(candidate)
    assert result.label == "corner+"
    torch.testing.assert_close(result.upscale(lr, (lr.shape[-2], lr.shape[-1])), expected)


def test_names_of_inputs_are_read_back() -> None:
    for inputs in (Inputs(), Inputs("jpeg", 40), Inputs("noise", 5)):
        assert parse_inputs(inputs.name) == inputs
