"""Outputs of any size: what ordinary readers see in them, and that a file is complete or not there.

Readers that share no code with the writers: libvips, Pillow, imagecodecs and, for Zarr,
tensorstore.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from diinn_fast.formats import layout as layout_module
from diinn_fast.formats import tiff_writer as tiff_module
from diinn_fast.formats.layout import halve
from diinn_fast.inference.sinks import (
    Layout,
    SinkOptions,
    disk_bytes,
    finish_bytes,
    open_sink,
    read_job,
    sink_kind,
)
from diinn_fast.inference.sources import open_source
from tests.helpers.pictures import GREY_PROFILE, SRGB, noise, refused, said

NAMES = ["x.npy", "x.png", "x.tif", "x.zarr", "x.ome.zarr"]
KINDS = {
    "grey": (1, "uint8"),
    "grey+alpha 16": (2, "uint16"),
    "rgb": (3, "uint8"),
    "rgb+alpha 16": (4, "uint16"),
}
TILED = (1100, 531)  # more rows than a side of untiled TIFF, several chunks of Zarr, odd columns


def picture(channels: int, dtype: str, height: int, width: int) -> np.ndarray:
    """Smooth with a little noise; the whole range."""
    if dtype == "float32":
        return np.random.default_rng(0).random((height, width, channels), np.float32)
    y, x = np.mgrid[:height, :width]
    ramps = np.stack([x * 3 + y, y * 5, x + y * 2, x * y // 7], -1)[..., :channels]
    result: np.ndarray = (ramps + noise(channels, 8, height, width) // 16).astype(dtype)
    return result


def layout_of(samples: np.ndarray, **fields: Any) -> Layout:
    height, width, channels = samples.shape
    job = fields.pop("job", "")
    return Layout(height, width, channels, samples.dtype.name, said(**fields), job)


def make_part(path: Path) -> Path:
    part = path.with_name(path.name + ".part")
    part.mkdir(exist_ok=True)
    return part


def write_all(sink: Any, samples: np.ndarray, rows: int = 512, columns: int = 512) -> None:
    """All windows of a grid, the last first."""
    height, width, _ = samples.shape
    for y in reversed(range(0, height, rows)):
        for x in reversed(range(0, width, columns)):
            sink.write(y, x, samples[y : y + rows, x : x + columns])


def save(
    path: Path, samples: np.ndarray, rows: int = 512, columns: int = 512, **fields: Any
) -> Layout:
    options = {name: fields.pop(name) for name in ("options", "overwrite") if name in fields}
    layout = layout_of(samples, **fields)
    part = make_part(path)
    sink = open_sink(path, layout, part=part, resume=False, **options)
    write_all(sink, samples, rows, columns)
    sink.flush()
    assert options.get("overwrite") or not path.exists()
    sink.finish()
    sink.close()
    shutil.rmtree(part)
    return layout


def contents(path: Path) -> dict[str, bytes]:
    """Bytes of a file, or of all files of a store."""
    if path.is_file():
        return {"": path.read_bytes()}
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }


# -- what readers see ------------------------------------------------------------------------------


def by_vips(path: Path, **options: Any) -> np.ndarray:
    pyvips = pytest.importorskip("pyvips")
    image = pyvips.Image.new_from_file(str(path), **options)
    result: np.ndarray = image.numpy().reshape(image.height, image.width, image.bands)
    return result


def by_pillow(path: Path) -> np.ndarray:
    with PIL.Image.open(path) as opened:
        samples = np.asarray(opened)
    return samples if samples.ndim == 3 else samples[..., None]


def by_imagecodecs(path: Path) -> np.ndarray:
    samples = pytest.importorskip("imagecodecs").png_decode(path.read_bytes())
    result: np.ndarray = samples if samples.ndim == 3 else samples[..., None]
    return result


def by_tifffile(path: Path) -> np.ndarray:
    samples = pytest.importorskip("tifffile").imread(path)
    result: np.ndarray = samples if samples.ndim == 3 else samples[..., None]
    return result


def by_zarr(path: Path) -> np.ndarray:
    samples = pytest.importorskip("zarr").open_array(path, mode="r")[:]
    result: np.ndarray = samples if samples.ndim == 3 else samples[..., None]
    return result


def by_tensorstore(path: Path) -> np.ndarray:
    tensorstore = pytest.importorskip("tensorstore")
    store = {"driver": "file", "path": str(path)}
    samples = tensorstore.open({"driver": "zarr3", "kvstore": store}).result().read().result()
    result: np.ndarray = samples if samples.ndim == 3 else samples[..., None]
    return result


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("height,width", [(1, 1), (37, 1500), TILED])
@pytest.mark.parametrize("name,readers", [
    ("x.png", [by_imagecodecs, by_vips]),
    ("x.tif", [by_tifffile, by_vips]),
    ("x.zarr", [by_zarr, by_tensorstore]),
    ("x.npy", [lambda path: np.atleast_3d(np.load(path, mmap_mode="r", allow_pickle=False))]),
])  # fmt: skip
def test_independent_readers_see_the_samples(
    tmp_path: Path, name: str, readers: Any, height: Any, width: Any, kind: str
) -> None:
    samples = picture(*KINDS[kind], height, width)
    path = tmp_path / name
    save(path, samples)
    assert os.listdir(tmp_path) == [name]
    for reader in readers:
        seen = reader(path)
        assert seen.dtype == samples.dtype
        np.testing.assert_array_equal(seen, samples)


@pytest.mark.parametrize("kind", ["grey", "rgb"])
@pytest.mark.parametrize("name", ["x.png", "x.tif"])
def test_pillow_sees_8_bit_samples(tmp_path: Path, name: str, kind: str) -> None:
    samples = picture(*KINDS[kind], *TILED)
    save(tmp_path / name, samples)
    np.testing.assert_array_equal(by_pillow(tmp_path / name), samples)


@pytest.mark.parametrize("name,reader", [
    ("x.tif", by_tifffile), ("x.tif", by_vips), ("x.zarr", by_zarr), ("x.zarr", by_tensorstore),
    ("x.npy", lambda path: np.load(path, allow_pickle=False)),
])  # fmt: skip
def test_floats_are_kept(tmp_path: Path, name: str, reader: Any) -> None:
    samples = picture(3, "float32", *TILED)
    save(tmp_path / name, samples)
    np.testing.assert_array_equal(reader(tmp_path / name), samples)


@pytest.mark.parametrize("name", ["x.tif", "x.zarr", "x.ome.zarr"])
def test_without_compression(tmp_path: Path, name: str) -> None:
    samples = picture(3, "uint8", *TILED)
    save(tmp_path / name, samples, options=SinkOptions(compress=False))
    assert sum(len(data) for data in contents(tmp_path / name).values()) > samples.nbytes
    np.testing.assert_array_equal(open_source(tmp_path / name).samples(0, 1100, 0, 531), samples)


@pytest.mark.parametrize("name", NAMES[1:])
def test_profile_resolution_and_alpha_come_back(tmp_path: Path, name: str) -> None:
    samples = picture(4, "uint16", 40, 30)
    save(tmp_path / name, samples, icc=SRGB, dpi=(300.0, 72.0), job="0123abcd")
    source = open_source(tmp_path / name)
    assert source.metadata.icc == SRGB and source.alpha and source.bits == 16
    assert source.metadata.dpi == pytest.approx((300, 72), abs=0.02)
    assert read_job(tmp_path / name) == "0123abcd"


@pytest.mark.parametrize("name", ["x.png", "x.tif"])
def test_libvips_finds_the_metadata(tmp_path: Path, name: str) -> None:
    pyvips = pytest.importorskip("pyvips")
    save(tmp_path / name, picture(4, "uint8", 40, 30), icc=SRGB, dpi=(300.0, 72.0))
    image = pyvips.Image.new_from_file(str(tmp_path / name))
    assert image.get("icc-profile-data") == SRGB
    assert (image.xres * 25.4, image.yres * 25.4) == pytest.approx((300, 72), abs=0.02)
    assert image.interpretation == "srgb" and image.hasalpha()


def test_tags_of_a_tiff(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    save(tmp_path / "x.tif", picture(4, "uint8", *TILED), job="0123abcd")
    with tifffile.TiffFile(tmp_path / "x.tif") as tiff:
        page = tiff.pages.first
        assert (page.tilelength, page.tilewidth, page.compression, page.predictor) == (
            256,
            256,
            8,
            2,
        )
        assert tuple(page.extrasamples) == (2,)  # alpha that is not premultiplied
        assert page.software.startswith("diinn_fast ")
        assert " job 0123abcd sum " in page.software
        assert not page.description  # it is the picture's own
        assert not tiff.is_bigtiff and len(tiff.pages) == 1


def test_a_tiff_that_32_bits_do_not_reach_is_a_bigtiff(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tifffile = pytest.importorskip("tifffile")
    samples = picture(3, "uint8", *TILED)
    assert samples.nbytes < 5 * 3 * 256 * 256 * 3
    # Whole tiles count.
    monkeypatch.setattr(tiff_module, "CLASSIC_MAX_BYTES", 5 * 3 * 256 * 256 * 3 - 1)
    save(tmp_path / "x.tif", samples)
    with tifffile.TiffFile(tmp_path / "x.tif") as tiff:
        assert tiff.is_bigtiff
    np.testing.assert_array_equal(by_vips(tmp_path / "x.tif"), samples)


@pytest.mark.parametrize("name", ["x.png", "x.tif", "x.zarr"])
def test_a_profile_for_grey_does_not_enter_an_rgb_file(tmp_path: Path, name: str) -> None:
    save(tmp_path / name, picture(3, "uint8", 9, 9), icc=GREY_PROFILE, dpi=(float("nan"), 1.0))
    source = open_source(tmp_path / name)
    assert source.metadata.icc is None and source.metadata.dpi is None


# -- pyramids --------------------------------------------------------------------------------------


def test_halving_rounds_half_up_and_repeats_an_odd_border() -> None:
    samples = np.array([[[0], [1], [9]], [[1], [0], [8]], [[255], [254], [255]]], np.uint8)
    assert halve(samples)[..., 0].tolist() == [[1, 9], [255, 255]]  # 2/4, 34/4, 1018/4, 255
    assert halve(np.full((2, 2, 1), 65535, np.uint16))[0, 0, 0] == 65535
    assert halve(np.array([[[0.25], [0.5]]], np.float32))[0, 0, 0] == 0.375


def halvings(samples: np.ndarray) -> list[np.ndarray]:
    """The definition of a pyramid: level after level of the whole, until both sides are at most
    256.
    """
    levels = [samples]
    while max(levels[-1].shape[:2]) > 256:
        levels.append(halve(levels[-1]))
    return levels


@pytest.mark.parametrize("kind", KINDS)
def test_tiff_pyramid(tmp_path: Path, kind: str) -> None:
    tifffile = pytest.importorskip("tifffile")
    samples = picture(*KINDS[kind], *TILED)
    save(tmp_path / "x.tif", samples, options=SinkOptions(pyramid=True))
    expected = halvings(samples)
    with tifffile.TiffFile(tmp_path / "x.tif") as tiff:
        assert len(tiff.pages) == 1 and len(tiff.series) == 1
        levels = tiff.series[0].levels
        assert len(levels) == len(expected) == 4
        for level, values in zip(levels, expected, strict=True):
            np.testing.assert_array_equal(level.asarray().reshape(values.shape), values)
    for number, values in enumerate(expected[1:]):
        np.testing.assert_array_equal(by_vips(tmp_path / "x.tif", subifd=number), values)
    np.testing.assert_array_equal(open_source(tmp_path / "x.tif").samples(0, 1100, 0, 531), samples)


@pytest.mark.parametrize("kind", KINDS)
def test_ome_zarr_follows_the_specification(tmp_path: Path, kind: str) -> None:
    """The rules of OME-Zarr 0.5 for an image: axes, order of levels, transformations, omero."""
    zarr = pytest.importorskip("zarr")
    samples = picture(*KINDS[kind], *TILED)
    path = tmp_path / "x.ome.zarr"
    save(path, samples)
    metadata = json.loads((path / "zarr.json").read_text())
    assert metadata["zarr_format"] == 3 and metadata["node_type"] == "group"
    ome = metadata["attributes"]["ome"]
    assert ome["version"] == "0.5"
    (multiscale,) = ome["multiscales"]
    assert [(axis["name"], axis["type"]) for axis in multiscale["axes"]] == [
        ("c", "channel"), ("y", "space"), ("x", "space"),
    ]  # fmt: skip
    expected = halvings(samples)
    assert [dataset["path"] for dataset in multiscale["datasets"]] == ["0", "1", "2", "3"]
    for number, (dataset, values) in enumerate(zip(multiscale["datasets"], expected, strict=True)):
        steps = dataset["coordinateTransformations"]
        assert [step["type"] for step in steps] == ["scale", "translation"][: len(steps)]
        assert steps[0]["scale"] == [1, 2**number, 2**number]
        shift = steps[1]["translation"] if number else [0, 0, 0]
        # The centre of the first sample is the mean of the centres of the samples below it.
        assert shift == [0, *[np.mean(range(2**number))] * 2]
        array = zarr.open_array(path / dataset["path"], mode="r")
        assert array.metadata.dimension_names == ("c", "y", "x")
        for seen in (array[:], by_tensorstore(path / dataset["path"])):
            np.testing.assert_array_equal(np.moveaxis(seen.reshape(array.shape), 0, 2), values)
    channels = ome["omero"]["channels"]
    assert len(channels) == samples.shape[2]
    top = np.iinfo(samples.dtype).max
    for channel in channels:
        assert set(channel) == {"label", "color", "active", "window"} and len(channel["color"]) == 6
        assert channel["window"] == {"min": 0, "max": top, "start": 0, "end": top}
    np.testing.assert_array_equal(open_source(path).samples(0, 1100, 0, 531), samples)


# -- windows, threads, processes -------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_file_does_not_depend_on_the_windows(tmp_path: Path, name: str) -> None:
    samples = picture(3, "uint8", *TILED)
    options = SinkOptions(pyramid=True)
    (tmp_path / "a").mkdir()
    save(tmp_path / "a" / name, samples, options=options, job="1")
    save(tmp_path / name, samples, 77, 130, options=options, job="1")
    assert contents(tmp_path / name) == contents(tmp_path / "a" / name)


@pytest.mark.parametrize("name", ["x.png", "x.tif"])
def test_the_file_does_not_depend_on_the_number_of_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    samples = picture(3, "uint16", *TILED)
    save(tmp_path / name, samples)
    before = contents(tmp_path / name)
    monkeypatch.setattr(layout_module, "WORKERS", 1)
    save(tmp_path / name, samples, overwrite=True)
    assert contents(tmp_path / name) == before


@pytest.mark.parametrize("name", NAMES)
def test_threads_may_share_a_sink(tmp_path: Path, name: str) -> None:
    samples = picture(3, "uint8", *TILED)
    part = make_part(tmp_path / name)
    sink = open_sink(tmp_path / name, layout_of(samples), part=part, resume=False)

    def write(worker: int) -> None:
        for y in range(worker * 50, 1100, 200):
            sink.write(y, 0, samples[y : y + 50])

    threads = [threading.Thread(target=write, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sink.finish()
    source = open_source(tmp_path / name)
    np.testing.assert_array_equal(source.samples(0, 1100, 0, 531), samples)


@pytest.mark.parametrize("name", NAMES)
def test_processes_may_share_the_part(tmp_path: Path, name: str) -> None:
    """Each opens it for itself and writes whole units; here one after the other, in one process."""
    samples = picture(3, "uint8", *TILED)
    layout = layout_of(samples)
    part = make_part(tmp_path / name)
    first = open_sink(tmp_path / name, layout, part=part, resume=False)
    second = open_sink(tmp_path / name, layout, part=part, resume=True)
    rows = max(first.unit[0], 100)
    for number, y in enumerate(range(0, 1100, rows)):
        (first, second)[number % 2].write(y, 0, samples[y : y + rows])
    second.flush()
    second.close()
    first.finish()
    np.testing.assert_array_equal(open_source(tmp_path / name).samples(0, 1100, 0, 531), samples)


@pytest.mark.parametrize("name", NAMES)
def test_a_window_that_does_not_fit_is_a_mistake_of_the_program(tmp_path: Path, name: str) -> None:
    samples = picture(3, "uint8", 20, 30)
    sink = open_sink(
        tmp_path / name, layout_of(samples), part=make_part(tmp_path / name), resume=False
    )
    for y, x, window in [
        (10, 0, samples),
        (0, -1, samples),
        (0, 0, samples[..., :1]),
        (0, 0, samples.astype("u2")),
    ]:
        with pytest.raises(ValueError, match="do not fit"):
            sink.write(y, x, window)


# -- complete or not there -------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_resuming_keeps_what_was_written(tmp_path: Path, name: str) -> None:
    samples = picture(3, "uint8", *TILED)
    layout = layout_of(samples, job="j")
    part = make_part(tmp_path / name)
    sink = open_sink(tmp_path / name, layout, part=part, resume=False)
    sink.write(0, 0, samples[:512])
    sink.flush()
    sink.close()
    assert not (tmp_path / name).exists()
    sink = open_sink(tmp_path / name, layout, part=part, resume=True)
    sink.write(512, 0, samples[512:])
    sink.finish()
    sink.finish()
    sink.close()
    sink.close()
    # Killed before the part was removed.
    again = open_sink(tmp_path / name, layout, part=part, resume=True)
    again.finish()
    again.close()
    np.testing.assert_array_equal(open_source(tmp_path / name).samples(0, 1100, 0, 531), samples)


@pytest.mark.parametrize("name", NAMES)
def test_only_the_same_output_is_resumed(tmp_path: Path, name: str) -> None:
    samples = picture(3, "uint8", 20, 30)
    part = make_part(tmp_path / name)
    refused(
        lambda: open_sink(tmp_path / name, layout_of(samples), part=part, resume=True),
        "start again",
    )
    open_sink(tmp_path / name, layout_of(samples), part=part, resume=False).close()
    other = layout_of(samples[:10])
    refused(lambda: open_sink(tmp_path / name, other, part=part, resume=True), "start again")


@pytest.mark.parametrize("name", NAMES)
def test_an_existing_output_is_kept_unless_told_otherwise(tmp_path: Path, name: str) -> None:
    samples = picture(3, "uint8", 20, 30)
    path = tmp_path / name
    save(path, samples, job="old")
    before = contents(path)
    part = make_part(path)
    sink = open_sink(path, layout_of(samples, job="new"), part=part, resume=False)
    write_all(sink, 255 - samples)
    refused(sink.finish, name, "already exists", "--overwrite")
    assert contents(path) == before
    sink.close()
    sink = open_sink(path, layout_of(samples, job="new"), part=part, resume=True, overwrite=True)
    sink.finish()
    np.testing.assert_array_equal(open_source(path).samples(0, 20, 0, 30), 255 - samples)


def test_a_folder_that_is_no_zarr_store_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "x.zarr"
    path.mkdir()
    (path / "precious").touch()
    samples = picture(3, "uint8", 20, 30)
    sink = open_sink(path, layout_of(samples), part=make_part(path), resume=False, overwrite=True)
    refused(sink.finish, "no Zarr store")
    assert (path / "precious").exists()


@pytest.mark.parametrize("name", ["x.npy", "x.png"])
def test_a_file_system_without_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def no_links(source: Any, target: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    samples = picture(3, "uint8", 20, 30)
    layout = layout_of(samples)
    part = make_part(tmp_path / name)
    sink = open_sink(tmp_path / name, layout, part=part, resume=False)
    write_all(sink, samples)
    sink.finish()
    sink.finish()
    sink.close()
    open_sink(tmp_path / name, layout, part=part, resume=True).finish()
    np.testing.assert_array_equal(open_source(tmp_path / name).samples(0, 20, 0, 30), samples)


def test_symbolic_links_are_written_through(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "x.png"
    link.symlink_to(tmp_path / "elsewhere/real.png")
    save(link, picture(3, "uint8", 20, 30))
    assert link.is_symlink() and (tmp_path / "elsewhere/real.png").exists()


KILLED = """
import os, sys
from pathlib import Path
import numpy as np
from diinn_fast.inference.sinks import Layout, SinkOptions, open_sink
folder, name = Path(sys.argv[1]), sys.argv[2]
path, part = folder / name, folder / (name + ".part")
samples = np.load(folder / "samples")
layout = Layout(*samples.shape, "uint8", job="job")

def finish(kill_at):
    # Called before the system opens for writing, renames, links, removes, ...
    def hook(event, args):
        nonlocal count
        writing = os.O_WRONLY | os.O_RDWR
        changes = event == "open" and isinstance(args[2], int) and args[2] & writing
        if (changes or event.startswith(("os.", "shutil."))) and "final" in str(args):
            count += 1
            if count == kill_at:
                os._exit(9)
    options = SinkOptions(pyramid=True)
    sink = open_sink(path, layout, part=part, resume=True, options=options, overwrite=True)
    count = 0
    sys.addaudithook(hook)
    sink.finish()
    os._exit(0)

status, kill_at = 9, 0
while status == 9:
    kill_at += 1
    child = os.fork()
    if child == 0:
        try:
            finish(kill_at)
        except BaseException as error:
            print(error, file=sys.stderr)
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(kill_at, status, path.exists())
sys.exit(status)
"""


@pytest.mark.long
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("name", NAMES)
def test_finishing_survives_being_killed_at_any_step(tmp_path: Path, name: str) -> None:
    """Killed before the first, second, ... step on the disk, then called again: the very file of no
    kill at all.
    """
    samples = picture(3, "uint8", 300, 200)
    with open(tmp_path / "samples", "wb") as file:
        np.save(file, samples)
    (tmp_path / "whole").mkdir()
    options = SinkOptions(pyramid=True)
    save(tmp_path / "whole" / name, samples, options=options, job="job")
    layout = layout_of(samples, job="job")
    sink = open_sink(
        tmp_path / name, layout, part=make_part(tmp_path / name), resume=False, options=options
    )
    write_all(sink, samples)
    sink.flush()
    sink.close()
    run = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), name],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    steps = run.stdout.splitlines()
    assert len(steps) >= 3  # it was killed at least twice
    assert contents(tmp_path / name) == contents(tmp_path / "whole" / name)


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[str]:
    """A disk of `size` bytes at `folder` (root), else files of at most that size; yields what
    errors say.
    """
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if os.geteuid() == 0 and subprocess.run(mount, capture_output=True).returncode == 0:
        try:
            yield "the disk is full"
        finally:
            subprocess.run(["umount", "-l", str(folder)], check=True)
        return
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 4, limits[1]))
    try:
        yield "large"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.skipif(os.name == "nt", reason="no small disk")
@pytest.mark.parametrize("name", NAMES)
def test_a_full_disk_while_writing(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    samples = noise(3, 8, 1024, 1024)  # 3 MiB that cannot be compressed
    path = folder / name
    with small_disk(folder, 2**21) as words:
        sink = open_sink(path, layout_of(samples), part=make_part(path), resume=False)
        sink.write(0, 0, samples[:100])
        sink.flush()
        if words == "large" and "zarr" in name:
            return  # no chunk is larger than the limit
        refused(
            lambda: write_all(sink, samples, 1024, 512),
            name,
            words,
            "keeps what was done",
            "resume",
        )
        sink.close()
        assert not path.exists()


@pytest.mark.skipif(os.name == "nt", reason="no small disk")
@pytest.mark.parametrize("name", ["x.png", "x.tif", "x.ome.zarr"])
def test_a_full_disk_while_finishing(tmp_path: Path, name: str) -> None:
    """Nothing bears the name, the samples are kept; with room the same sink finishes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    samples = noise(3, 8, 1024, 1024)
    path = folder / name
    levels = "zarr" in name
    with small_disk(folder, 2**23) as words:
        layout = layout_of(samples)
        part = make_part(path)
        sink = open_sink(path, layout, part=part, resume=False)
        write_all(sink, samples)
        if words == "large":
            resource.setrlimit(
                resource.RLIMIT_FSIZE, (2**16, resource.getrlimit(resource.RLIMIT_FSIZE)[1])
            )
        else:
            (folder / "filler").write_bytes(bytes(2**23 - 3 * 2**20 - (2**18 if levels else 2**20)))
        refused(sink.finish, name, words, "keeps what was done", "resume")
        assert not path.exists() and not (not levels and (part / "final").exists())
        if words == "large":
            resource.setrlimit(
                resource.RLIMIT_FSIZE, (2**23, resource.getrlimit(resource.RLIMIT_FSIZE)[1])
            )
        else:
            (folder / "filler").unlink()
        sink.finish()
        sink.close()
        np.testing.assert_array_equal(open_source(path).samples(0, 1024, 0, 1024), samples)


# -- what it will take -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_the_disk_check_is_an_upper_bound(tmp_path: Path, name: str, kind: str) -> None:
    """Noise, which compression makes larger."""
    channels, dtype = KINDS[kind]
    samples = noise(channels, 16 if dtype == "uint16" else 8, *TILED)
    options = SinkOptions(pyramid=True)
    layout = layout_of(samples, icc=SRGB)
    path = tmp_path / name
    part = make_part(tmp_path / name)
    sink = open_sink(path, layout, part=part, resume=False, options=options)
    write_all(sink, samples)
    sink.finish()
    sink.close()
    final = sum(map(len, contents(path).values()))
    kept, largest = disk_bytes(path, layout, options)
    assert final <= largest < 2.1 * final + 2**20
    samples_left = part / "samples"
    assert kept >= (samples_left.stat().st_size if samples_left.exists() else 0)


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_finishing_takes_the_memory_that_it_announces(tmp_path: Path, name: str) -> None:
    samples = np.tile(picture(4, "uint16", 128, 128), (24, 12, 1))  # 36 MiB
    layout = layout_of(samples)
    options = SinkOptions(pyramid=True)
    sink = open_sink(
        tmp_path / name, layout, part=make_part(tmp_path / name), resume=False, options=options
    )
    write_all(sink, samples)
    sink.flush()
    tracemalloc.start()
    sink.finish()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    sink.close()
    assert peak <= finish_bytes(tmp_path / name, layout, options) <= 2**26
    larger = layout_of(np.broadcast_to(samples[:1, :1], (10**5, 10**4, 4)))
    assert finish_bytes(tmp_path / name, larger, options) <= 2**26


@pytest.mark.parametrize("name", ["x.png", "x.tif", "x.ome.zarr"])
def test_progress_goes_up_to_the_end(tmp_path: Path, name: str) -> None:
    samples = picture(3, "uint8", *TILED)
    part = make_part(tmp_path / name)
    sink = open_sink(
        tmp_path / name,
        layout_of(samples),
        part=part,
        resume=False,
        options=SinkOptions(pyramid=True),
    )
    write_all(sink, samples)
    told = []
    sink.finish(lambda done, total: told.append((done, total)))
    assert len(told) > 2 and [done for done, _ in told] == sorted({done for done, _ in told})
    assert len({total for _, total in told}) == 1 and told[-1][0] == told[-1][1]


# -- names, refusals -------------------------------------------------------------------------------


def test_the_file_name_picks_the_format() -> None:
    names = {
        "a.png": "png",
        "A.TIF": "tiff",
        "a.tiff": "tiff",
        "a.npy": "npy",
        "a.zarr": "zarr",
        "b.OME.zarr": "ome-zarr",
    }
    assert {name: sink_kind(name) for name in names} == names
    assert (
        sink_kind("a.jpg") is None
        and sink_kind(Path("a.webp")) is None
        and sink_kind("zarr") is None
    )


def test_what_no_format_takes_is_refused(tmp_path: Path) -> None:
    layout = Layout(8, 8, 3, "float32")
    refused(
        lambda: open_sink(tmp_path / "x.png", layout, part=tmp_path, resume=False), "x.png", ".tif"
    )
    refused(
        lambda: open_sink(tmp_path / "x.jpg", layout, part=tmp_path, resume=False), "x.jpg", ".png"
    )
    refused(lambda: Layout(0, 8, 3, "uint8"), "0 pixels")
    five = Layout(8, 8, 5, "uint8")
    refused(lambda: open_sink(tmp_path / "x.png", five, part=tmp_path, resume=False), "5 bands")
    refused(lambda: Layout(8, 8, 3, "int16"), "int16")


def test_zarr_is_asked_for_only_where_it_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "zarr", None)
    samples = picture(3, "uint8", 20, 30)
    save(tmp_path / "x.tif", samples)
    refused(lambda: save(tmp_path / "x.zarr", samples), "zarr", "pip install 'diinn_fast[big]'")


def test_no_job_is_found_where_none_is(tmp_path: Path) -> None:
    for name in NAMES:
        assert read_job(tmp_path / name) is None
        save(tmp_path / name, picture(3, "uint8", 20, 30))
        assert read_job(tmp_path / name) is None
    for name in ("y.png", "y.tif"):
        (tmp_path / name).write_bytes(b"something else")
        assert read_job(tmp_path / name) is None


@pytest.mark.parametrize("options", [{}, {"compress": False}, {"pyramid": True}])
@pytest.mark.parametrize("name", ["x.npy", "x.png", "x.tif"])
def test_a_file_that_has_changed_since_is_not_complete(
    tmp_path: Path, name: str, options: dict[str, bool]
) -> None:
    """Whichever of its bytes: header, tags, samples, fingerprint, and what is cut off or added."""
    path = tmp_path / name
    save(path, picture(3, "uint8", 40, 30), job="0123abcd", options=SinkOptions(**options))
    whole = path.read_bytes()
    assert read_job(path) == "0123abcd"
    for place in [*range(0, len(whole), max(1, len(whole) // 150)), len(whole) - 1]:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert read_job(path) != "0123abcd", place
    for other in (whole[:-1], whole + b"?", b""):
        path.write_bytes(other)
        assert read_job(path) is None
    path.write_bytes(whole)
    assert read_job(path) == "0123abcd"


@pytest.mark.parametrize("shape", [(40, 30, 3), (7, 5, 1), (11, 13, 4)])
def test_an_npy_with_a_job_is_one_for_everybody(
    tmp_path: Path, shape: tuple[int, int, int]
) -> None:
    """The fingerprint is white space, and samples begin at a multiple of 64 bytes."""
    samples = noise(shape[2], 8, *shape[:2])
    save(tmp_path / "x.npy", samples, job="ab" * 32)
    expected = samples[..., 0] if shape[2] == 1 else samples
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), expected)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    np.testing.assert_array_equal(mapped, expected)
    assert ((tmp_path / "x.npy").stat().st_size - samples.nbytes) % 64 == 0


def test_an_unfinished_store_says_so(tmp_path: Path) -> None:
    path = tmp_path / "x.zarr"
    part = make_part(path)
    open_sink(path, Layout(8, 8, 3, "uint8", job="j"), part=part, resume=False).close()
    refused(lambda: open_source(part / "final"), "not complete")
    shutil.move(part / "final", path)
    assert read_job(path) is None


@pytest.mark.parametrize("name", ["x.zarr", "x.ome.zarr"])
def test_a_store_that_lost_or_changed_a_chunk_is_not_complete(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    save(path, picture(3, "uint8", 40, 30), job="0123abcd")
    assert read_job(path) == "0123abcd"
    chunk = next(file for file in path.rglob("*") if file.is_file() and file.name != "zarr.json")
    whole = chunk.read_bytes()
    chunk.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert read_job(path) is None
    chunk.unlink()
    assert read_job(path) is None
    chunk.write_bytes(whole)
    assert read_job(path) == "0123abcd"
