"""Textures that tile: the output tiles, too. It is the middle of what nine copies become."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from diinn_fast.errors import UpscaleError
from diinn_fast.inference import Upscaler
from tests.helpers.plans import six_tiles
from tests.helpers.small_models import picture, small_model

H = 30
W = 24


@pytest.fixture(scope="module")
def upscaler() -> Upscaler:
    return Upscaler(small_model(), device="cpu")


@pytest.fixture
def tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every render in six tiles."""
    six_tiles(monkeypatch, (64, 64))


def middle_of_nine(upscaler: Upscaler, given: np.ndarray, hr: tuple[int, int]) -> np.ndarray:
    nine = np.tile(given, (3, 3, *[1] * (given.ndim - 2)))
    out: np.ndarray = upscaler(nine, size=(3 * hr[0], 3 * hr[1]))
    return out[hr[0] : 2 * hr[0], hr[1] : 2 * hr[1]]


def texture(kind: str) -> np.ndarray:
    samples = picture(H, W, 4)
    samples[..., 3] = np.where(samples[..., 3] < 90, 0, samples[..., 3])
    return {
        "rgb": samples[..., :3],
        "grey": samples[..., 0],
        "alpha": samples,
        "16 bits": samples[..., :3].astype(np.uint16) * 257,
        "neutral": samples[..., :1].repeat(3, 2),
    }[kind]


@pytest.mark.parametrize("kind", ["rgb", "grey", "alpha", "16 bits", "neutral"])
@pytest.mark.parametrize(
    "hr", [(60, 48), (81, 90), (15, 12), (20, 60), (30, 24)], ids=lambda hr: f"{hr[1]}x{hr[0]}"
)
def test_it_is_the_middle_of_nine_copies(
    upscaler: Upscaler, kind: str, hr: tuple[int, int]
) -> None:
    """Enlarged, reduced, and one of each."""
    given = texture(kind)
    out = upscaler(given, size=hr, wrap=True)
    np.testing.assert_array_equal(out, middle_of_nine(upscaler, given, hr))


@pytest.mark.parametrize("kind", ["rgb", "alpha"])
@pytest.mark.parametrize("hr", [(81, 90), (15, 12), (20, 60)])
def test_in_pieces(
    upscaler: Upscaler, tiles: None, tmp_path: Path, kind: str, hr: tuple[int, int]
) -> None:
    given = texture(kind)
    np.save(tmp_path / "in.npy", given)
    upscaler.render(tmp_path / "in.npy", tmp_path / "out.npy", size=hr, wrap=True)
    expected = upscaler(given, size=hr, wrap=True)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), expected)


def test_of_mode_4(tmp_path: Path) -> None:
    """Whose decoder looks at the grid around a pixel."""
    upscaler = Upscaler(small_model(mode=4), device="cpu")
    given = texture("rgb")
    out = upscaler(given, size=(60, 48), wrap=True)
    np.testing.assert_array_equal(out, middle_of_nine(upscaler, given, (60, 48)))


@pytest.mark.parametrize(
    ("kind", "hr"), [("rgb", (60, 48)), ("alpha", (81, 90)), ("neutral", (20, 60))]
)
@pytest.mark.parametrize("mode", [3, 4])
def test_of_a_self_ensemble(kind: str, hr: tuple[int, int], mode: int) -> None:
    """The mean over flips and transposes of the copies is that of one of them."""
    upscaler = Upscaler(small_model(mode=mode), device="cpu", self_ensemble=True)
    given = texture(kind)
    out = upscaler(given, size=hr, wrap=True)
    np.testing.assert_array_equal(out, middle_of_nine(upscaler, given, hr))


def test_a_picture_smaller_than_what_the_network_sees(upscaler: Upscaler) -> None:
    """It repeats more than three times: the same as of a repeated picture."""
    given = picture(3, 5)
    more = np.tile(given, (11, 7, 1))
    out = upscaler(given, size=(6, 15), wrap=True)
    np.testing.assert_array_equal(
        np.tile(out, (11, 7, 1)), upscaler(more, size=(66, 105), wrap=True)
    )


def test_without_it_edges_do_not_meet(upscaler: Upscaler) -> None:
    given = texture("rgb")
    plain = upscaler(given, size=(60, 48))
    expected = middle_of_nine(upscaler, given, (60, 48))
    assert np.abs(plain[0].astype(int) - expected[0]).max() > 1
    np.testing.assert_array_equal(plain[28:32, 22:26], expected[28:32, 22:26])


def test_a_smaller_halo_and_a_bound(upscaler: Upscaler, tmp_path: Path) -> None:
    given = texture("rgb")
    np.save(tmp_path / "in.npy", given)
    out = tmp_path / "out.npy"
    how = {"size": (60, 48), "wrap": True, "max_memory": "3GiB", "overwrite": True}
    upscaler.render(tmp_path / "in.npy", out, **how)
    np.testing.assert_array_equal(np.load(out), upscaler(given, size=(60, 48), wrap=True))
    upscaler.render(tmp_path / "in.npy", out, halo=2, **how)
    assert np.load(out).shape == (60, 48, 3)


def test_it_is_part_of_the_job(upscaler: Upscaler, tmp_path: Path) -> None:
    np.save(tmp_path / "in.npy", texture("rgb"))
    out = tmp_path / "out.png"
    upscaler.render(tmp_path / "in.npy", out, scale=2, wrap=True)
    before = Path(out).read_bytes()
    upscaler.render(tmp_path / "in.npy", out, scale=2, wrap=True, resume=True)
    with pytest.raises(ValueError, match="already exists"):
        upscaler.render(tmp_path / "in.npy", out, scale=2, resume=True)
    assert out.read_bytes() == before


def test_refusals(upscaler: Upscaler) -> None:
    given = texture("rgb")
    with pytest.raises(UpscaleError, match="longer than"):
        upscaler(given[:, :1], size=(60, 1 << 23), wrap=True)
    model = small_model()
    model.encoder = torch.nn.Conv2d(3, 32, 3, padding=1)
    with pytest.raises(UpscaleError, match="receptive_radius"):
        Upscaler(model, device="cpu")(given, wrap=True)
