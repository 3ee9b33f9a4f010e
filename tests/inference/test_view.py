"""Windows on demand: the pixels of the whole at any size, and features that are made once."""

from __future__ import annotations

import pickle
import random
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import tifffile
import zarr

import diinn_fast
from diinn_fast.errors import ImageError, UpscaleError
from diinn_fast.inference import Upscaler, View, features
from diinn_fast.inference.features import spans
from tests.helpers.known_models import random_model, save
from tests.helpers.small_models import picture, small_model


@pytest.fixture(scope="module")
def upscaler() -> Upscaler:
    return Upscaler(small_model(), device="cpu")


@pytest.fixture
def tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of 40 LR pixels: six of them for the picture."""
    monkeypatch.setattr(features, "TILE", 40)


def opened(image: Any, **options: Any) -> View:
    return diinn_fast.open(image, small_model(), device="cpu", **options)


def test_any_window_at_any_size_is_that_of_the_whole(
    upscaler: Upscaler, tiles: None, seed: random.Random
) -> None:
    image = picture(80, 110)
    shown = opened(image)
    for size in ((80, 110), (173, 301), (33, 50), (400, 123)):
        whole = upscaler(image, size=size)
        np.testing.assert_array_equal(shown.render(None, size), whole)
        for _ in range(5):
            (y0, y1), (x0, x1) = (sorted(seed.sample(range(n + 1), 2)) for n in size)
            np.testing.assert_array_equal(shown.render((y0, y1, x0, x1), size), whole[y0:y1, x0:x1])


def test_tiles_of_a_narrow_picture(upscaler: Upscaler, tiles: None) -> None:
    whole = upscaler(picture(4, 290), scale=2)
    np.testing.assert_array_equal(opened(picture(4, 290)).render(None, whole.shape[:2]), whole)


@pytest.mark.parametrize("mode", [1, 4])
def test_other_modes(mode: int, tiles: None) -> None:
    shown = diinn_fast.open(picture(), small_model(mode=mode), device="cpu")
    for size in ((201, 170), (41, 60)):
        whole = Upscaler(small_model(mode=mode), device="cpu")(picture(), size=size)
        np.testing.assert_array_equal(shown.render((30, 41, 20, 60), size), whole[30:41, 20:60])


def test_each_tile_is_encoded_once_whatever_the_sizes(tiles: None) -> None:
    with opened(picture(80, 110)) as shown:
        shown.render((0, 10, 0, 10), (160, 220))
        assert shown.encoded == 1
        shown.render((0, 20, 0, 20), (320, 440))
        assert shown.encoded == 1
        shown.render(None, (160, 220))
        shown.render(None, (240, 330))
        assert shown.encoded == 6


def test_a_tile_is_encoded_once_however_many_threads_ask(upscaler: Upscaler, tiles: None) -> None:
    image = picture(80, 110)
    whole = upscaler(image, size=(160, 220))
    windows = [(y, y + 40, x, x + 44) for y in range(0, 160, 40) for x in range(0, 220, 44)]
    with opened(image) as shown, ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda window: shown.render(window, (160, 220)), windows * 4)
        for (y0, y1, x0, x1), samples in zip(windows * 4, found, strict=True):
            np.testing.assert_array_equal(samples, whole[y0:y1, x0:x1])
        assert shown.encoded == 6


def test_zooming_in_takes_smaller_tiles_and_uses_those_of_smaller_scales(tiles: None) -> None:
    size = (80 * 32, 110 * 32)
    with opened(picture(80, 110)) as shown:
        shown.render((0, 8, 0, 8), size)
        assert shown._features._bytes == 7 * 7 * 32 * 4, "5 LR pixels and a margin of 2"
        shown.render((0, 8, 0, 8), (160, 220))
        assert shown.encoded == 2
        shown.render((600, 1000, 600, 1000), size)
        assert shown.encoded == 2, "the tile of the smaller scale holds it"


def test_spans_follow_one_another_within_the_reach_of_their_tiles() -> None:
    for length, side in ((23, 5), (10, 10), (11, 5), (40, 10)):
        for start in range(length):
            for stop in range(start + 1, length + 1):
                found = spans(start, stop, side, length)
                assert [found[0][1], found[-1][2]] == [start, stop]
                assert all(a[2] == b[1] for a, b in pairwise(found))
                for index, first, last in found:
                    assert index * side - 2 <= first < last <= (index + 1) * side + 2
                    assert 0 <= index * side < length


def test_the_features_kept_are_bounded_and_the_last_used_stay(tiles: None) -> None:
    shown = opened(picture(80, 110), max_features=2 * 44 * 44 * 32 * 4)  # two tiles
    corner = (0, 5, 0, 5)
    for window in (corner, (0, 5, 50, 60), corner, (0, 5, 90, 95)):
        shown.render(window, (80, 110))
    assert shown.encoded == 3
    shown.render(corner, (80, 110))
    assert shown.encoded == 3, "the corner was used after the tile that made room"
    shown.render((0, 5, 50, 60), (80, 110))
    assert shown.encoded == 4


@pytest.mark.parametrize("channels", [1, 4])
def test_grey_and_alpha(upscaler: Upscaler, channels: int) -> None:
    image = picture(channels=channels)
    image = image[..., 0] if channels == 1 else image
    whole = upscaler(image, scale=1.7)
    part = opened(image).render((40, 90, 30, 120), whole.shape[:2])
    np.testing.assert_array_equal(part, whole[40:90, 30:120])


def test_slices_like_an_array(upscaler: Upscaler) -> None:
    whole = upscaler(picture(), scale=2)
    lazy = opened(picture()).at(whole.shape[:2])
    assert (lazy.shape, lazy.dtype, lazy.ndim) == (whole.shape, whole.dtype, 3)
    for key in (
        np.s_[10:20, 30:50], np.s_[5], np.s_[-3:, ..., 1], np.s_[::-7, 3::5], np.s_[..., 0],
        np.s_[4, -6, 2],
        np.s_[9:9],
    ):  # fmt: skip
        np.testing.assert_array_equal(lazy[key], whole[key])
    np.testing.assert_array_equal(np.asarray(lazy), whole)
    with pytest.raises(IndexError):
        lazy[1000]


def test_nothing_is_encoded_for_an_empty_slice() -> None:
    shown = opened(picture())
    assert shown.at((50, 60))[3:3, :].shape == (0, 60, 3)
    assert shown.encoded == 0


def test_windows_outside_are_refused() -> None:
    shown = opened(picture())
    for window, size in (((0, 5, 0, 500), (90, 110)), ((5, 5, 0, 1), (90, 110)), (None, (0, 10))):
        with pytest.raises(UpscaleError):
            shown.render(window, size)


# -- a first paint -----------------------------------------------------------------------------


def test_bicubic_is_that_of_pillow_where_the_picture_gets_smaller() -> None:
    image = picture(90, 110)
    small = opened(image).bicubic((5, 20, 3, 27), (30, 40)).astype(int)
    resized = PIL.Image.fromarray(image).resize((40, 30), PIL.Image.Resampling.BICUBIC)
    # Pillow rounds its weights, and samples between the axes.
    assert abs(small - np.asarray(resized).astype(int)[5:20, 3:27]).max() <= 2


def test_bicubic_waits_for_no_network_and_the_sharp_one_follows() -> None:
    shown = opened(picture())
    window, size = (10, 40, 20, 60), (180, 220)
    first = shown.bicubic(window, size)
    assert first.shape == (30, 40, 3)
    assert first.dtype == np.uint8
    assert shown.encoded == 0
    sharp = shown.submit(window, size)
    np.testing.assert_array_equal(sharp.result(), shown.render(window, size))
    assert abs(first.astype(int) - sharp.result()).max() > 2
    shown.close()


# -- files that change --------------------------------------------------------------------------


def write(path: Path, samples: np.ndarray) -> None:
    """Into the file that is there, if there is one."""
    if path.suffix == ".npy":
        np.save(path, samples)
    elif path.suffix == ".tif":
        tifffile.imwrite(path, samples, photometric="rgb", tile=(16, 16), compression="zlib")
    elif path.suffix == ".png":
        PIL.Image.fromarray(samples).save(path)
    else:
        zarr.create_array(path, data=samples, chunks=(16, 16, 3), overwrite=True)


@pytest.mark.parametrize("name", ["in.npy", "in.tif", "in.zarr"])
def test_a_file_that_is_written_into_is_refused(
    upscaler: Upscaler, tiles: None, tmp_path: Path, name: str
) -> None:
    """No window is put together from two pictures, and no features of one are kept for another."""
    path = tmp_path / name
    write(path, picture(20, 90))
    shown = upscaler.open(path)
    first = shown.render((0, 10, 0, 10), (40, 180))
    write(path, picture(20, 90, seed=1))
    for made in (shown.render, shown.bicubic):
        with pytest.raises(ImageError, match="has changed since it was opened: open it again"):
            made(None, (40, 180))
    again = upscaler.open(path).render((0, 10, 0, 10), (40, 180))
    assert (again != first).any()


@pytest.mark.parametrize("name", ["in.npy", "in.tif", "in.png"])
def test_a_file_whose_name_another_one_takes_is_still_read(
    upscaler: Upscaler, tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    write(path, picture(20, 30))
    shown = upscaler.open(path)
    other = tmp_path / f"other-{name}"
    write(other, picture(20, 30, seed=1))
    other.replace(path)
    expected = upscaler.open(picture(20, 30)).render(None, (40, 60))
    np.testing.assert_array_equal(shown.render(None, (40, 60)), expected)


# -- other processes ---------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A picture and a model."""
    PIL.Image.fromarray(picture(20, 30)).save(tmp_path / "in.png")
    return tmp_path / "in.png", save(random_model(), tmp_path / "weights")


def test_a_view_is_sent_by_the_names_of_picture_and_model(files: tuple[Path, Path]) -> None:
    shown = diinn_fast.open(files[0], files[1], device="cpu", max_features="8MiB")
    expected = shown.render(None, (40, 60))
    sent = pickle.dumps(shown)
    assert len(sent) < 2000
    again = pickle.loads(sent)
    assert (again.encoded, again.shape, again.dtype) == (0, (20, 30), np.uint8)
    np.testing.assert_array_equal(again.render(None, (40, 60)), expected)
    scaled = pickle.loads(pickle.dumps(shown.at((40, 60))))
    np.testing.assert_array_equal(scaled[3:9], expected[3:9])


def test_an_array_is_sent_with_it(files: tuple[Path, Path]) -> None:
    shown = diinn_fast.open(picture(20, 30), files[1], device="cpu")
    again = pickle.loads(pickle.dumps(shown))
    np.testing.assert_array_equal(again.render(None, (25, 30)), shown.render(None, (25, 30)))


def test_what_has_no_name_is_not_sent(files: tuple[Path, Path]) -> None:
    with pytest.raises(UpscaleError, match="save it and give its file"):
        pickle.dumps(opened(files[0]))
    with open(files[0], "rb") as file:
        shown = diinn_fast.open(file, files[1], device="cpu")
        with pytest.raises(UpscaleError, match="open it by its path"):
            pickle.dumps(shown)


def test_other_pixels_or_weights_than_were_sent_are_refused(files: tuple[Path, Path]) -> None:
    sent = pickle.dumps(diinn_fast.open(files[0], files[1], device="cpu"))
    PIL.Image.fromarray(picture(20, 30, seed=1)).save(files[0])
    with pytest.raises(UpscaleError, match="not those that were opened"):
        pickle.loads(sent)
    sent = pickle.dumps(diinn_fast.open(files[0], files[1], device="cpu"))
    save(random_model(mode=4), files[1])
    with pytest.raises(UpscaleError, match="not those that were opened"):
        pickle.loads(sent)


@pytest.mark.parametrize(
    ("size", "chunks"),
    [((40, 60), (40, 60)), ((2048, 3000), (2048, 2048)), ((70_000, 110_000), (1094, 1174))],
)
def test_chunks_are_whole_tiles_or_even_parts_of_one(
    size: tuple[int, int], chunks: tuple[int, int]
) -> None:
    lazy = opened(picture(1024, 1500)).at(size)
    assert (len(lazy), lazy.size) == (size[0], size[0] * size[1] * 3)
    assert lazy.chunks == (*chunks, 3)
