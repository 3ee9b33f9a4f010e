"""Metrics against scikit-image, and the rules of every protocol, on a photograph."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchmetrics.image
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from diinn_fast import metrics
from diinn_fast.evaluation.report import cells
from diinn_fast.metrics import (
    METRICS,
    PROTOCOLS,
    bicubic_matrix,
    degrade,
    luma,
    psnr,
    reduce,
    score,
    ssim,
)

PHOTO = Path(__file__).parents[2] / "examples" / "coffee.png"


@pytest.fixture(scope="module")
def hr() -> Tensor:
    """[1, 3, 96, 120] in [0, 1]."""
    pixels = np.array(Image.open(PHOTO).convert("RGB"))[60:156, 40:160]
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255


@pytest.fixture(scope="module")
def sr(hr: Tensor) -> Tensor:
    """The photograph reduced by 3 and enlarged again."""
    lr = degrade(hr, (32, 40), mirrored=True)
    return F.interpolate(lr, (96, 120), mode="bicubic", antialias=True).clamp(0, 1)


def as_array(image: Tensor) -> np.ndarray:
    return image[0].permute(1, 2, 0).double().numpy()


@pytest.mark.parametrize("channels", [luma, lambda image: image], ids=["Y", "RGB"])
def test_psnr_and_ssim_are_those_of_scikit_image(sr: Tensor, hr: Tensor, channels: int) -> None:
    a = channels(sr)
    b = channels(hr)
    assert psnr(a, b) == pytest.approx(
        peak_signal_noise_ratio(as_array(b), as_array(a), data_range=1.0), abs=1e-6
    )
    want = structural_similarity(
        as_array(a),
        as_array(b),
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=1.0,
        channel_axis=-1,
    )
    assert 0.5 < want < 0.95
    assert ssim(a, b) == pytest.approx(want, abs=2e-5)


def test_equal_images_are_perfect(hr: Tensor) -> None:
    assert psnr(hr, hr) == math.inf
    assert ssim(hr, hr) == pytest.approx(1.0, abs=1e-6)


def test_nan_is_never_a_score(hr: Tensor) -> None:
    assert math.isnan(psnr(hr * math.nan, hr))


def test_luma_spans_16_to_235() -> None:
    black_white = torch.tensor([0.0, 1.0]).view(1, 1, 1, 2).expand(1, 3, 1, 2)
    assert luma(black_white).flatten() * 255 == pytest.approx([16.0, 235.0], abs=0.01)


# -- protocols -------------------------------------------------------------------------------------


def literal_score(sr: Tensor, hr: Tensor, scale: int, name: str) -> float:
    """PSNR by the protocols' published descriptions, in numpy."""
    a = as_array(sr.clamp(0, 1)) * 255
    b = as_array(hr) * 255
    if name == "basicsr":
        a = a.round()
    if name in ("liif-benchmark", "basicsr"):
        a = a @ np.array([65.481, 128.553, 24.966]) / 255 + 16
        b = b @ np.array([65.481, 128.553, 24.966]) / 255 + 16
    shave = {"liif-benchmark": scale, "basicsr": scale, "liif-div2k": scale + 6, "diinn-test": 0}[
        name
    ]
    a = a[shave : len(a) - shave, shave : a.shape[1] - shave]
    b = b[shave : len(b) - shave, shave : b.shape[1] - shave]
    return float(10 * np.log10(255**2 / ((a - b) ** 2).mean()))


@pytest.mark.parametrize("name", PROTOCOLS)
@pytest.mark.parametrize("scale", [2, 3])
def test_psnr_of_every_protocol_is_its_published_rule(
    sr: Tensor, hr: Tensor, name: str, scale: int
) -> None:
    spoiled = sr.clone()
    # The border counts in one protocol only, and clipping counts.
    spoiled[..., :2, :] = 1.2 * spoiled[..., :2, :] + 0.1
    got = score(spoiled, hr, scale, PROTOCOLS[name], ("psnr",), (96 // scale, 120 // scale))
    assert got == {"psnr": pytest.approx(literal_score(spoiled, hr, scale, name), abs=0.002)}


def test_only_basicsr_rounds_the_output(hr: Tensor) -> None:
    for name, protocol in PROTOCOLS.items():
        found = score(hr + 0.3 / 255, hr, 2, protocol, ("psnr",), (48, 60))["psnr"]
        assert (found > 100) == (name == "basicsr")


def test_sizes_cut_or_keep_the_image() -> None:
    liif = PROTOCOLS["liif-benchmark"]
    diinn = PROTOCOLS["diinn-test"]
    assert liif.sizes(256, 255, 3) == ((85, 85), (255, 255))
    assert liif.sizes(321, 481, 2.5) == ((128, 192), (320, 480))
    # Both quotients are a little smaller in floating point.
    assert liif.sizes(55, 33, 1.1) == (
        (50, 30),
        (55, 33),
    )
    assert diinn.sizes(256, 255, 3) == ((85, 85), (256, 255))
    assert diinn.sizes(256, 228, 15) == ((17, 15), (256, 228))


def test_images_smaller_than_the_scale_still_have_sizes() -> None:
    for protocol in PROTOCOLS.values():
        for height, width in ((1, 1), (3, 9), (7, 100)):
            lr, size = protocol.sizes(height, width, 8)
            assert min(lr) >= 1 and min(size) >= 1 and size[0] <= height and size[1] <= width


def test_scores_without_a_region_are_nan() -> None:
    tiny = torch.rand(1, 3, 8, 30)
    wanted = ("psnr", "ssim", "lr_psnr")
    for name, undefined in (("liif-div2k", {"psnr", "ssim"}), ("diinn-test", {"ssim"})):
        found = score(tiny, tiny * 0.9, 4, PROTOCOLS[name], wanted, (2, 8))
        assert {k for k, v in found.items() if math.isnan(v)} == undefined


def test_lr_psnr_sees_only_what_survives_reduction(sr: Tensor, hr: Tensor) -> None:
    protocol = PROTOCOLS["diinn-test"]
    lr = (32, 40)
    rows = bicubic_matrix(96, 32, mirrored=False)
    projector = torch.linalg.pinv(rows) @ rows
    unseen = torch.randn(96, 120, dtype=torch.float64) * 0.02
    unseen = unseen - projector @ unseen  # nothing of it is left when rows are reduced
    base = hr.double() * 0.5 + 0.25
    found = score(base + unseen, base, 3, protocol, ("psnr", "lr_psnr"), lr)
    assert found["psnr"] < 40 and found["lr_psnr"] > 200
    reduced = (F.interpolate(v, lr, mode="bicubic", antialias=True) for v in (sr, hr))
    assert score(sr, hr, 3, protocol, ("lr_psnr",), lr)["lr_psnr"] == pytest.approx(
        psnr(*reduced), abs=0.01
    )


def test_ssim_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    assert metrics.missing_for(("psnr", "ssim")) is None
    monkeypatch.setitem(__import__("sys").modules, "torchmetrics", None)
    assert "pip install torchmetrics" in (metrics.missing_for(("psnr", "ssim")) or "")
    assert metrics.missing_for(("psnr", "lr_psnr")) is None


class TestLPIPS:
    """Its network is torchvision's and its weights are fetched: played here. With them,
    torchmetrics gives what its documentation says.
    """

    @pytest.fixture
    def seen(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[Tensor, Tensor]]]:
        pairs: list[tuple[Tensor, Tensor]] = []

        def network(net_type: str, normalize: bool) -> Callable[[Tensor, Tensor], Tensor]:
            assert net_type == "squeeze" and normalize  # [0, 1]

            def distance(a: Tensor, b: Tensor) -> Tensor:
                pairs.append((a, b))
                return (a - b).abs().mean()

            return distance

        # Without torchvision, torchmetrics does not have it.
        name = "LearnedPerceptualImagePatchSimilarity"
        monkeypatch.setattr(torchmetrics.image, name, network, raising=False)
        metrics._lpips_network.cache_clear()
        yield pairs
        metrics._lpips_network.cache_clear()

    def test_it_sees_the_whole_picture_in_rgb(
        self, seen: list[tuple[Tensor, Tensor]], sr: Tensor, hr: Tensor
    ) -> None:
        protocol = PROTOCOLS["basicsr"]
        found = score(sr * 1.1, hr, 3, protocol, ("psnr", "lpips"), (32, 40))
        ((a, b),) = seen
        rounded = ((sr * 1.1).clamp(0, 1) * 255).round() / 255
        assert torch.equal(a, rounded) and torch.equal(b, hr)
        assert found["lpips"] == pytest.approx(float((a - b).abs().mean()))

    def test_a_picture_too_small_for_its_network_has_none(
        self, seen: list[tuple[Tensor, Tensor]]
    ) -> None:
        tiny = torch.rand(1, 3, metrics.LPIPS_SIDE - 1, 40)
        found = score(tiny, tiny, 2, PROTOCOLS["basicsr"], ("lpips",), (8, 20))
        assert math.isnan(found["lpips"]) and not seen

    def test_what_is_missing_for_it_is_said(self, monkeypatch: pytest.MonkeyPatch) -> None:
        modules = __import__("sys").modules
        monkeypatch.setitem(modules, "torchvision", None)
        assert "pip install torchvision" in (metrics.missing_for(("psnr", "lpips")) or "")
        monkeypatch.setitem(modules, "torchvision", math)
        entry = replace(METRICS["lpips"], trial=lambda: (_ for _ in ()).throw(OSError("no route")))
        monkeypatch.setitem(METRICS, "lpips", entry)
        assert "(no route): try again" in (metrics.missing_for(("lpips",)) or "")

    def test_less_is_better_in_tables(self) -> None:
        assert cells([0.21, 0.19, None], "lpips") == ["0.2100", "**0.1900**", "-"]
        assert cells([0.21, 0.19, None], "ssim") == ["**0.2100**", "0.1900", "-"]


def test_protocols_describe_themselves() -> None:
    for name, protocol in PROTOCOLS.items():
        assert name in protocol.describe() and protocol.describe().endswith(".")


# -- reduction -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(32, 40), (37, 51), (5, 7), (96, 120), (150, 121)])
def test_reduction_is_torch_s_antialiased_bicubic(hr: Tensor, size: tuple[int, int]) -> None:
    want = F.interpolate(hr.double(), size, mode="bicubic", antialias=True)
    torch.testing.assert_close(reduce(hr.double(), size, mirrored=False), want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_mirrored_reduction_is_that_of_the_continued_image(hr: Tensor, scale: int) -> None:
    lr = 96 // scale, 120 // scale
    pad = 8 * scale
    continued = np.pad(hr[0].double().numpy(), ((0, 0), (pad, pad), (pad, pad)), mode="symmetric")
    whole = reduce(torch.from_numpy(continued)[None], (lr[0] + 16, lr[1] + 16), mirrored=False)
    got = reduce(hr.double(), lr, mirrored=True)
    torch.testing.assert_close(got, whole[..., 8:-8, 8:-8], rtol=0, atol=1e-12)
    assert (got - reduce(hr.double(), lr, mirrored=False)).abs().max() > 1e-4  # the borders differ


def test_reduction_keeps_constants_and_rounds_to_8_bit(hr: Tensor) -> None:
    for mirrored in (False, True):
        assert reduce(torch.full((1, 7, 9), 0.3), (2, 4), mirrored).flatten() == pytest.approx(
            [0.3] * 8
        )
        levels = degrade(hr, (31, 43), mirrored) * 255
        assert (
            (levels - levels.round()).abs().max() < 1e-4
            and levels.min() >= 0
            and levels.max() <= 255
        )
