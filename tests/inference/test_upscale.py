"""`diinn_fast.upscale`: every kind of picture, what is kept, sizes, precision, bands, and what is
refused.

Most tests use a model that is nearest-neighbour interpolation, so that the right answer is known.
"""

from __future__ import annotations

import copy
import io
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageCms
import pytest
import torch
from torch import Tensor

from diinn_fast import BackendError, CheckpointError
from diinn_fast.errors import ImageError, UpscaleError
from diinn_fast.formats import Image, read_image, write_image
from diinn_fast.inference import Upscaler, load_weights, memory, target_size
from diinn_fast.inference import upscale as run_upscale
from diinn_fast.inference.devices import dtype_of, pick_backend, pick_precision
from diinn_fast.inference.sources import open_source
from diinn_fast.model import bundled_names
from tests.helpers.known_models import nearest_model, random_model, save
from tests.helpers.pictures import said


@pytest.fixture(scope="module")
def nearest() -> Upscaler:
    """In float32, in which it is exact."""
    return Upscaler(nearest_model(), device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def mixing() -> Upscaler:
    """In float32 whatever the picture, so that its kinds can be compared."""
    return Upscaler(random_model(), device="cpu", precision="fp32")


def noise(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)


def repeated(samples: np.ndarray, times: int = 2) -> np.ndarray:
    """[h, w, ...], each pixel ``times`` x ``times``."""
    return samples.repeat(times, 0).repeat(times, 1)


# -- kinds -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3), (1, 1, 3)])
def test_integer_arrays_keep_dtype_and_channels(
    nearest: Upscaler, shape: tuple[int, int] | tuple[int, int, int], dtype: type
) -> None:
    samples = noise(*shape, dtype=dtype)
    result = nearest(samples, scale=2)
    assert result.dtype == dtype
    np.testing.assert_array_equal(result, repeated(samples))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_float_arrays_keep_their_dtype(nearest: Upscaler, dtype: type) -> None:
    samples: np.ndarray = np.random.default_rng(0).random((5, 7, 3)).astype(dtype)
    result = nearest(samples, scale=2)
    assert result.dtype == dtype
    np.testing.assert_allclose(result, repeated(samples), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(3, 5, 7), (1, 3, 5, 7), (2, 3, 5, 7)])
def test_tensors_keep_shape_and_dtype(
    nearest: Upscaler, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    image = torch.rand(shape, dtype=torch.float32).to(dtype).requires_grad_()
    result = nearest(image, scale=2)
    assert result.dtype == dtype and not result.requires_grad and not result.is_inference()
    expected = image.detach().repeat_interleave(2, -1).repeat_interleave(2, -2)
    torch.testing.assert_close(result, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("1", "L"),
        ("L", "L"),
        ("LA", "LA"),
        ("P", "RGB"),
        ("RGB", "RGB"),
        ("RGBA", "RGBA"),
        ("I;16", "I;16"),
    ],
)
def test_pil_images_keep_their_mode(nearest: Upscaler, mode: str, expected: str) -> None:
    if mode == "I;16":
        picture = PIL.Image.fromarray(noise(5, 7, dtype=np.uint16))
    else:
        picture = PIL.Image.fromarray(noise(5, 7, 3)).convert(mode)
    picture.info["icc_profile"] = b"profile"
    picture.info["dpi"] = (300, 300)
    result = nearest(picture, scale=2)
    assert (result.mode, result.size) == (expected, (14, 10))
    assert result.info["icc_profile"] == b"profile" and result.info["dpi"] == (600, 600)
    if mode in ("L", "RGB", "I;16"):
        np.testing.assert_array_equal(np.array(result), repeated(np.array(picture)))


def test_pil_transparent_colour_becomes_alpha(nearest: Upscaler) -> None:
    picture = PIL.Image.new("P", (4, 4))
    picture.putpalette([0, 0, 0, 200, 100, 50])
    picture.putpixel((0, 0), 1)
    picture.info["transparency"] = 0
    result = nearest(picture, scale=2)
    assert result.mode == "RGBA"
    assert result.getpixel((0, 0)) == (200, 100, 50, 255) and result.getpixel((7, 7))[3] == 0


def test_pil_orientation_is_applied(nearest: Upscaler) -> None:
    samples = noise(4, 6, 3)
    picture = PIL.Image.fromarray(samples)
    exif = PIL.Image.Exif()
    exif[274] = 6  # to be turned by 90 degrees clockwise
    file = io.BytesIO()
    picture.save(file, "PNG", exif=exif)
    result = nearest(PIL.Image.open(file), scale=2)
    np.testing.assert_array_equal(np.array(result), repeated(np.rot90(samples, -1)))


def test_all_kinds_agree(mixing: Upscaler, tmp_path: Path) -> None:
    samples = noise(6, 5, 3)
    planes = torch.from_numpy(samples).permute(2, 0, 1).float() / 255
    write_image(tmp_path / "in.png", Image(planes))
    array = mixing(samples, scale=2.5)
    assert array.std() > 1, "a flat output would agree with anything"
    np.testing.assert_array_equal(np.array(mixing(PIL.Image.fromarray(samples), scale=2.5)), array)
    tensor = mixing(planes, scale=2.5)
    for other in (mixing(Image(planes), scale=2.5).rgb, mixing(tmp_path / "in.png", scale=2.5).rgb):
        assert torch.equal(other, tensor)
    assert torch.equal(mixing(str(tmp_path / "in.png"), scale=2.5).rgb, tensor)
    levels = (tensor * 255 + 0.5).floor().byte().permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(levels, array)
    batch = mixing(torch.stack([planes, planes.flip(2)]), scale=2.5)
    assert torch.equal(batch[0], tensor) and not torch.equal(batch[1], tensor)


def test_the_network_sees_normalised_values_and_the_output_is_clamped(mixing: Upscaler) -> None:
    image = torch.rand(1, 3, 6, 5)
    with torch.no_grad():
        raw = mixing.model((image - 0.5) / 0.5, scale=3)
    torch.testing.assert_close(
        mixing(image, scale=3), (raw * 0.5 + 0.5).clamp(0, 1), atol=1e-6, rtol=0
    )
    bright = copy.deepcopy(mixing.model)
    bright.decoder.last_layer.bias.data += torch.tensor([5.0, -5.0, 0.0])
    red, green, _ = run_upscale(image[0], scale=2, model=bright, device="cpu")
    assert bool((red == 1).all()) and bool((green == 0).all())


# -- what is kept ----------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("has_alpha", [False, True])
def test_files_keep_bits_grey_alpha_profile_and_dpi(
    nearest: Upscaler, tmp_path: Path, bits: int, grey: bool, has_alpha: bool
) -> None:
    levels = torch.randint(0, 2**bits, (4, 4, 6)) / (2**bits - 1)
    rgb = levels[:1].repeat(3, 1, 1) if grey else levels[:3]
    icc = (
        PIL.ImageCms.ImageCmsProfile(PIL.ImageCms.createProfile("sRGB")).tobytes()
        if not grey
        else None
    )
    alpha = torch.ones(1, 4, 6) if has_alpha else None
    original = Image(rgb, alpha, grey, bits, said(icc, (300.0, 300.0)))
    write_image(tmp_path / "in.png", original)
    result = nearest(tmp_path / "in.png", scale=3)
    result.save(tmp_path / "out.png")
    with pytest.raises(ImageError, match="already exists"):
        result.save(tmp_path / "out.png")
    again = read_image(tmp_path / "out.png")
    assert (again.bits, again.grey, again.icc, again.alpha is not None) == (
        bits,
        grey,
        icc,
        has_alpha,
    )
    assert again.dpi == pytest.approx((900, 900), abs=0.1)
    step = 1 / (2**bits - 1)
    expected = rgb.repeat_interleave(3, 1).repeat_interleave(3, 2)
    torch.testing.assert_close(again.rgb, expected, atol=step / 4, rtol=0)
    if again.alpha is not None:
        assert bool((again.alpha == 1).all())


def test_grey_is_the_mean_of_the_three_outputs(mixing: Upscaler) -> None:
    grey = torch.rand(1, 5, 6).repeat(3, 1, 1)
    with torch.no_grad():
        colour = (mixing.model(grey[None] * 2 - 1, (10, 12))[0] * 0.5 + 0.5).clamp(0, 1)
    result = mixing(Image(grey, grey=True), scale=2)
    assert result.grey and not torch.equal(colour[0], colour[1])
    for plane in result.rgb:
        torch.testing.assert_close(plane, colour.mean(0), atol=1e-6, rtol=0)


def test_hidden_colour_does_not_bleed_into_the_visible(mixing: Upscaler) -> None:
    """A hard alpha edge: whatever lies under the transparent half, the output is that of the
    visible colour alone.
    """
    visible = torch.tensor([0.9, 0.3, 0.2]).view(3, 1, 1).repeat(1, 10, 12)
    alpha = torch.ones(1, 10, 12)
    alpha[..., 6:] = 0
    plain = mixing(Image(visible), scale=2.5).rgb
    for hidden in (0.0, 1.0):
        rgb = torch.where(alpha > 0, visible, torch.full_like(visible, hidden))
        result = mixing(Image(rgb, alpha), scale=2.5)
        torch.testing.assert_close(result.rgb, plain, atol=1e-4, rtol=0)
        assert result.alpha.min() >= 0 and result.alpha.max() <= 1
        assert bool((result.alpha[..., :12] > 0.999).all()) and bool(
            (result.alpha[..., 18:] < 0.001).all()
        )


@pytest.mark.skipif(not bundled_names(), reason="no bundled model in this checkout")
def test_no_dark_fringe_with_the_bundled_model() -> None:
    colour = torch.tensor([0.9, 0.8, 0.3]).view(3, 1, 1)
    alpha = (torch.arange(24) < 12).float().view(1, 1, 24).repeat(1, 24, 1)
    result = run_upscale(Image(colour * alpha, alpha), scale=3, device="cpu")
    # Away from the outer border; to the edge and two pixels of the input beyond.
    seen = result.rgb[:, 8:-8, 8:36]
    assert float((seen - colour).abs().max()) < 0.05
    black = run_upscale(Image(colour * alpha), scale=3, device="cpu").rgb[:, 8:-8, 8:36]
    assert float((black - colour).abs().max()) > 0.1, "without alpha, the black side must show"


@pytest.mark.parametrize("hr", [(20, 24), (5, 6), (5, 24)])
def test_alpha_is_bicubic_and_antialiased_only_downwards(
    nearest: Upscaler, hr: tuple[int, int]
) -> None:
    alpha = torch.rand(1, 10, 12)
    result = nearest(Image(torch.rand(3, 10, 12), alpha), size=hr).alpha
    small = min(10, hr[0]), min(12, hr[1])
    resize = partial(torch.nn.functional.interpolate, mode="bicubic")
    reduced = resize(alpha[None], small, antialias=True).clamp(0, 1)
    expected = resize(reduced, hr)[0].clamp(0, 1) if hr != small else reduced[0]
    torch.testing.assert_close(result, expected)


# -- sizes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({}, (40, 28)),
        ({"scale": 3.7}, (37, 26)),
        ({"scale": (2, 3)}, (20, 21)),
        ({"scale": np.float32(2)}, (20, 14)),
        ({"scale": 0.01}, (1, 1)),
        ({"size": (13, 5)}, (13, 5)),
        ({"long_side": 33}, (33, 23)),
        ({"long_side": 3}, (3, 2)),
    ],
)
def test_target_size(wanted: dict[str, Any], expected: tuple[int, int]) -> None:
    assert target_size((10, 7), **wanted) == expected


@pytest.mark.parametrize(
    "wanted",
    [
        {"scale": 0},
        {"scale": -2},
        {"scale": float("nan")},
        {"scale": float("inf")},
        {"scale": 1e300},
        {"scale": 1.7e308},
        {"scale": (1, 2, 3)},
        {"scale": "4"},
        {"size": (0, 5)},
        {"size": (5, 2.5)},
        {"size": 5},
        {"size": (5, 1 << 25)},
        {"long_side": 0},
        {"long_side": 2.5},
        {"scale": 2, "long_side": 7},
        {"scale": 2, "size": (7, 7)},
    ],
)
def test_impossible_sizes_are_refused(wanted: dict[str, Any]) -> None:
    refused(lambda: target_size((10, 7), **wanted))


def test_scale_beyond_training_warns_once_per_picture(
    nearest: Upscaler, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "diinn_fast"):
        nearest(noise(4, 4), scale=4)
        assert not caplog.records
        nearest(noise(4, 4), scale=5)
        nearest(noise(4, 4), scale=6)
    assert len(caplog.records) == 2 and "scale 5" in caplog.text and "scale 6" in caplog.text


# -- strips, precision, self-ensemble --------------------------------------------------------------


@pytest.mark.parametrize("mode", [1, 3, 4])
@pytest.mark.parametrize("hr", [(19, 17), (5, 4)])
def test_strips_equal_the_whole_bitwise(mode: int, hr: tuple[int, int]) -> None:
    upscaler = Upscaler(random_model(mode), device="cpu")
    rgb = torch.rand(3, 6, 5)
    ((_, whole),) = upscaler.strips(rgb, hr, rows=hr[0])
    for rows in (1, 2, 7):
        parts = list(upscaler.strips(rgb, hr, rows=rows))
        assert [y for y, _ in parts] == list(range(0, hr[0], rows))
        assert torch.equal(torch.cat([band for _, band in parts], dim=1), whole)


def test_large_outputs_are_decoded_in_strips(
    mixing: Upscaler, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = torch.rand(3, 6, 5)
    whole = mixing(image, scale=3)
    monkeypatch.setattr("diinn_fast.inference.upscaler.STRIP_PIXELS", 40)
    assert torch.equal(mixing(image, scale=3), whole)


@pytest.mark.parametrize("hr", [(14, 10), (15, 7)])
def test_self_ensemble_is_the_mean_over_eight_symmetries(
    hr: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diinn_fast.inference.upscaler.STRIP_PIXELS", 40)  # several strips
    model = random_model()
    image = torch.rand(3, 7, 5)

    def turned(x: Tensor, transpose: bool, flips: list[int]) -> Tensor:
        return (x.transpose(-1, -2) if transpose else x).flip(flips)

    total = torch.zeros(3, *hr)
    for transpose in (False, True):
        for flips in ([], [-1], [-2], [-1, -2]):
            with torch.no_grad():
                size = hr[::-1] if transpose else hr
                sr = model((turned(image, transpose, flips)[None] - 0.5) / 0.5, size)[0].flip(flips)
            total += sr.transpose(-1, -2) if transpose else sr
    expected = (total / 8 * 0.5 + 0.5).clamp(0, 1)
    result = run_upscale(image, size=hr, model=model, self_ensemble=True, device="cpu")
    torch.testing.assert_close(result, expected, atol=1e-6, rtol=0)
    assert not torch.allclose(
        result, run_upscale(image, size=hr, model=model, device="cpu"), atol=1e-3
    )


@pytest.mark.parametrize(
    ("precision", "tolerance"), [("bf16", 0.05), ("fp16", 0.01), ("int8", 0.05)]
)
def test_coarser_precision_is_close_and_different(
    mixing: Upscaler, precision: str, tolerance: float
) -> None:
    image = torch.rand(3, 6, 5)
    exact = mixing(image, scale=2)
    result = run_upscale(image, scale=2, model=mixing.model, device="cpu", precision=precision)
    assert result.dtype == torch.float32
    assert 0 < float((result - exact).abs().max()) < tolerance


def test_int8_is_a_precision_of_one_backend() -> None:
    upscaler = Upscaler(random_model(), device="cpu", precision="int8")
    upscaler(torch.rand(3, 6, 5), scale=2)
    assert upscaler.used_backend == "int8"
    with pytest.raises(BackendError, match="'eager' does not compute in int8: leave the backend"):
        Upscaler(random_model(), device="cpu", precision="int8", backend="eager")


def test_int8_on_cuda_is_tritons_or_cudas_by_name_alone() -> None:
    """Nothing that has not been measured on hardware is chosen."""
    gpu = torch.device("cuda", 0)
    assert pick_precision("int8", gpu) == "int8"
    assert dtype_of("int8", gpu) == torch.float16
    with pytest.raises(UpscaleError, match="use --backend triton or cuda, or --precision fp16"):
        pick_backend("auto", "int8", gpu)
    for kind in ("triton", "cuda"):
        for name in (kind, f"{kind}_int8"):
            with pytest.raises(BackendError, match=rf"'{kind}_int8' cannot run: .*(CUDA|install)"):
                pick_backend(name, "int8", gpu)
    with pytest.raises(BackendError, match="'eager' does not compute in int8"):
        pick_backend("eager", "int8", gpu)


def test_fp32_on_cuda_is_float32_for_convolutions_too() -> None:
    conv = torch.backends.cudnn.conv
    before = conv.fp32_precision
    upscaler = Upscaler()
    upscaler.device = torch.device("cuda")  # nothing is computed
    with upscaler._arithmetic():
        assert conv.fp32_precision == "ieee" and not torch.is_autocast_enabled("cuda")
    assert conv.fp32_precision == before


def test_overflow_names_the_remedy() -> None:
    model = nearest_model()
    with torch.no_grad():
        model.decoder.last_layer.weight.mul_(1e6)  # beyond fp16
    image = torch.rand(3, 4, 4)
    with pytest.raises(FloatingPointError, match=r"--precision fp32"):
        run_upscale(image, model=model, device="cpu", precision="fp16")
    run_upscale(image, model=model, device="cpu", precision="fp32")
    with torch.no_grad():
        model.decoder.last_layer.weight.mul_(3e32)
    with pytest.raises(FloatingPointError, match="other weights"):
        run_upscale(image, model=model, device="cpu")


def test_autocast_around_it_changes_nothing(mixing: Upscaler) -> None:
    image = torch.rand(3, 6, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = mixing(image, scale=2)
    assert torch.equal(inside, mixing(image, scale=2))


def test_the_callers_model_is_left_as_it_is() -> None:
    model = random_model().half().train()
    run_upscale(torch.rand(3, 4, 4), scale=1, model=model, device="cpu")
    assert model.training and all(p.dtype == torch.float16 for p in model.parameters())


# -- weights ---------------------------------------------------------------------------------------


def test_weights_by_folder_and_by_file(tmp_path: Path) -> None:
    model = random_model()
    image = torch.rand(3, 4, 4)
    expected = run_upscale(image, scale=2, model=model, device="cpu")
    folder = save(model, tmp_path / "model")
    torch.save({"state_dict": model.state_dict()}, tmp_path / "model.ckpt")
    for weights in (folder, str(folder), folder / "model.safetensors", tmp_path / "model.ckpt"):
        assert torch.equal(run_upscale(image, scale=2, model=weights, device="cpu"), expected)


@pytest.mark.skipif(not bundled_names(), reason="no bundled model in this checkout")
def test_the_bundled_model_is_the_default() -> None:
    image = torch.rand(3, 6, 6)
    assert torch.equal(
        run_upscale(image, device="cpu"), run_upscale(image, model=bundled_names()[0], device="cpu")
    )


def test_unknown_weights_name_the_bundled_ones(tmp_path: Path) -> None:
    for name in ("no-such-model", "", str(tmp_path / "missing.pt"), "someone/something"):
        with pytest.raises(UpscaleError, match="bundled"):
            load_weights(name)


def test_model_folders_are_checked(tmp_path: Path) -> None:
    folder = save(random_model(), tmp_path / "model")
    config = (folder / "config.json").read_text()
    for text in ("{", "[]", '{"mode": 9}', '{"encoder": "vgg"}'):
        (folder / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"config\.json"):
            load_weights(folder)
    (folder / "config.json").write_text(config.replace("3", "4"))
    with pytest.raises(CheckpointError, match="last_layer"):
        load_weights(folder)
    (folder / "config.json").write_text(config)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no model\.safetensors"):
        load_weights(folder)
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        load_weights(tmp_path)


def test_nan_weights_are_refused(tmp_path: Path) -> None:
    model = random_model()
    with torch.no_grad():
        model.encoder.head[0].bias[0] = float("nan")
    with pytest.raises(CheckpointError, match=r"encoder\.head\.0\.bias.*NaN"):
        load_weights(save(model, tmp_path))


# -- refusals --------------------------------------------------------------------------------------


def refused(action: Callable[[], Any], *words: str, error: type[Exception] = UpscaleError) -> None:
    with pytest.raises(error) as caught:
        action()
    message = str(caught.value)
    assert message and "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("image", "word"),
    [
        (torch.tensor(float("nan")).expand(3, 4, 4), "NaN"),
        (np.full((4, 4), np.nan), "NaN"),
        (Image(torch.full((3, 4, 4), float("nan"))), "NaN"),
        (Image(torch.rand(3, 4, 4), torch.full((1, 4, 4), float("nan"))), "NaN"),
        (torch.full((3, 4, 4), float("inf")), "infinite"),
        (torch.full((3, 4, 4), 255.0), "[0, 1]"),
        (np.full((4, 4, 3), -1.0), "[0, 1]"),
        (torch.zeros(3, 4, 4, dtype=torch.uint8), "floating point"),
        (torch.rand(4, 4), "[3, h, w]"),
        (torch.rand(4, 4, 4), "[3, h, w]"),
        (torch.rand(0, 3, 4, 4), "[B, 3, h, w]"),
        (np.zeros((4, 4, 5)), "1 to 4"),
        (np.zeros((4, 4, 3), np.int32), "int32"),
        (np.zeros((0, 4, 3), np.uint8), "4x0"),
        (PIL.Image.new("CMYK", (4, 4)), "CMYK"),
        (PIL.Image.new("F", (4, 4)), "mode F"),
        (Image(torch.rand(3, 4, 4), torch.rand(1, 4, 5)), "alpha"),
        ([1, 2, 3], "list"),
        (None, "NoneType"),
    ],
)
def test_unusable_pictures_are_refused(nearest: Upscaler, image: Any, word: str) -> None:
    refused(lambda: nearest(image, size=(4, 4)), word)


def test_missing_files_are_refused(nearest: Upscaler) -> None:
    refused(lambda: nearest(Path("no such file.png")), "no such file.png", error=ImageError)


def test_too_large_for_memory_is_refused_before_the_work(
    nearest: Upscaler, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused(lambda: nearest(noise(4, 4, 3), size=(16_000_000, 16_000_000)), "GiB", "smaller")
    monkeypatch.setattr(memory, "available_bytes", lambda device: 1 << 20)
    refused(lambda: nearest(noise(4, 4, 3)), "GiB")


def test_memory_estimate_counts_every_output_sample(
    nearest: Upscaler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Output of 1e9 pixels: one byte for 8-bit grey, up to 16 for float RGB with alpha."""
    asked = []
    monkeypatch.setattr(memory, "_compare", lambda needed, *_: asked.append(needed))
    monkeypatch.setattr(nearest, "_upscale", lambda *_: torch.zeros(4, 1, 1))
    for image in (
        noise(4, 4),
        noise(4, 4, dtype=np.uint16),
        noise(4, 4, 3),
        Image(torch.rand(3, 4, 4)),
    ):
        nearest(image, size=(40_000, 25_000))
    nearest(Image(torch.rand(3, 4, 4), torch.rand(1, 4, 4)), size=(40_000, 25_000))
    constant = asked[0] - 10**9
    assert [n - constant for n in asked] == [10**9, 2 * 10**9, 3 * 10**9, 12 * 10**9, 16 * 10**9]


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "mps:7", "meta", ""])
def test_unknown_devices_are_refused(device: str) -> None:
    refused(lambda: Upscaler(nearest_model(), device=device), "device")


def test_unknown_precision_is_refused() -> None:
    refused(lambda: Upscaler(nearest_model(), precision="fp8"), "fp32, bf16, fp16")


def test_mode_4_needs_two_pixels() -> None:
    upscaler = Upscaler(random_model(4), device="cpu")
    refused(lambda: upscaler(noise(1, 4), size=(1, 8)), "mode 4")


@pytest.mark.parametrize("channels", [1, 2])
def test_arrays_keep_their_axes(nearest: Upscaler, channels: int) -> None:
    samples = noise(5, 7, channels)
    assert nearest(samples.reshape(5, 7, channels), scale=2).shape == (10, 14, channels)


@pytest.mark.parametrize("kind", [np.ma.masked_equal, lambda array, _: np.asmatrix(array)])
def test_arrays_that_are_more_than_samples_are_refused(nearest: Upscaler, kind: Any) -> None:
    array = kind(noise(5, 7), 0)
    for action in (lambda: nearest(array, scale=2), lambda: open_source(array)):
        with pytest.raises(UpscaleError, match=r"filled|np\.asarray"):
            action()


@pytest.mark.parametrize(
    "tensor",
    [torch.rand(3, 4, 4).to_sparse(), torch.empty(3, 4, 4, device="meta")],
    ids=["sparse", "meta"],
)
def test_tensors_without_plain_values_are_refused(nearest: Upscaler, tensor: Tensor) -> None:
    with pytest.raises(UpscaleError, match="dense and hold values"):
        nearest(tensor, scale=2)


def test_a_pil_image_of_a_cut_off_file_is_refused(nearest: Upscaler) -> None:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (64, 64), "red").save(buffer, "JPEG")
    picture = PIL.Image.open(io.BytesIO(buffer.getvalue()[:-60]))
    with pytest.raises(UpscaleError, match=r"cannot be decoded .*truncated"):
        nearest(picture, scale=2)


def test_true_is_no_scale(nearest: Upscaler) -> None:
    with pytest.raises(UpscaleError, match="scale must be"):
        nearest(np.zeros((4, 4), np.uint8), scale=True)
