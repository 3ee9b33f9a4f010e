"""Whatever a file says about itself, what it takes is bounded and an error is one sentence."""

from __future__ import annotations

import json
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import tifffile

from diinn_fast.formats import jpeg, png_codec, read_image
from diinn_fast.formats.zarr_store import zarr_job
from diinn_fast.inference.sources import open_source
from tests.helpers.pictures import noise, refused

zarr = pytest.importorskip("zarr")
numcodecs = pytest.importorskip("numcodecs")


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '|u1', 'fortran_order': False, 'shape': (4, 4",
        "-" * 9000 + "1",
        "(" * 3000,
        "{'descr': 'no such type', 'fortran_order': False, 'shape': (4, 4)}",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (4, -4)}",
        "[]",
        "\x00\xff",
    ],
)
def test_headers_of_npy_files(tmp_path: Path, header: str) -> None:
    data = header.encode("latin-1")
    path = tmp_path / "x.npy"
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(data)) + data + bytes(16))
    refused(lambda: open_source(path), "x.npy")


def store(path: Path, **attributes: Any) -> Any:
    array = zarr.create_array(str(path), shape=(20, 30), dtype="uint8", chunks=(10, 10))
    array[:] = noise(1, height=20, width=30)[..., 0]
    array.attrs.update(attributes)
    return path


@pytest.mark.parametrize(
    "state",
    [
        [], None, "x", {"metadata": []}, {"metadata": 5},
        *({"metadata": {name: value}} for name, value in [
            ("icc", 5), ("icc", "???"), ("exif", "AAAA"), ("resolution", [1]),
            ("resolution", [1, 1, "mile"]), ("geo", [[1, 2, 3, "AA=="]]), ("geo", [5]),
            ("texts", [5]), ("colour", []), ("space", {}), ("ome", 7), ("comment", ["a"]),
        ]),
    ],
)  # fmt: skip
def test_attributes_of_zarr_stores(tmp_path: Path, state: Any) -> None:
    refused(lambda: open_source(store(tmp_path / "x.zarr", diinn_fast=state)), "x.zarr", "damaged")


@pytest.mark.parametrize(
    "multiscales", [[{}], [{"datasets": []}], [{"datasets": [{"path": ""}]}], [5], {"a": 1}]
)
def test_groups_of_zarr_arrays(
    tmp_path: Path,
    multiscales: list[dict[str, Any]]
    | list[dict[str, list[dict[str, str]]]]
    | list[int]
    | dict[str, int],
) -> None:
    group = zarr.create_group(str(tmp_path / "x.zarr"))
    group.attrs.update({"ome": {"multiscales": multiscales}})
    refused(lambda: open_source(tmp_path / "x.zarr"), "x.zarr")


def test_json_that_is_too_deep(tmp_path: Path) -> None:
    path = tmp_path / "x.zarr"
    path.mkdir()
    (path / "zarr.json").write_text("[" * 100_000)
    refused(lambda: open_source(path), "x.zarr", "damaged")
    assert zarr_job(path) is None


def test_metadata_that_is_too_large(tmp_path: Path) -> None:
    path = store(tmp_path / "x.zarr")
    content = json.loads((path / "zarr.json").read_text())
    content["attributes"] = {"x": "y" * (1 << 24)}
    (path / "zarr.json").write_text(json.dumps(content))
    refused(lambda: open_source(path), "x.zarr", "damaged")


def test_a_chunk_that_never_ends(tmp_path: Path) -> None:
    path = store(tmp_path / "x.zarr")
    chunk = path / "c" / "0" / "0"
    chunk.unlink()
    chunk.symlink_to("/dev/zero")
    refused(lambda: open_source(path).read(0, 5, 0, 5), "c/0/0 is no plain file")


def test_a_chunk_that_is_larger_than_its_samples(tmp_path: Path) -> None:
    path = store(tmp_path / "x.zarr")
    with open(path / "c" / "0" / "0", "r+b") as file:
        file.truncate(1 << 30)
    refused(lambda: open_source(path).read(0, 5, 0, 5), "more than its samples")
    np.testing.assert_array_equal(
        open_source(path).read(0, 5, 15, 25)[0][0].numpy() * 255,
        noise(1, height=20, width=30)[:5, 15:25, 0],
    )


def test_libraries_say_nothing_on_their_own(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import io

    import PIL.Image

    buffer = io.BytesIO()
    PIL.Image.fromarray(noise(3)).save(buffer, "TIFF")
    data = bytearray(buffer.getvalue())
    rng = np.random.default_rng(5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(40):
            broken = data.copy()
            for place in rng.integers(8, 150, 2):
                broken[place] = rng.integers(0, 256)
            try:
                read_image(bytes(broken))
            except ValueError as error:
                assert type(error).__name__ == "ImageError"
    assert capfd.readouterr().err == ""


def segment(marker: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 255, marker, len(data) + 2) + data


@pytest.mark.parametrize(
    ("segments", "word"),
    [
        (segment(0xE1, b"Exif\0\0" + bytes(8)) * 5000, "too many parts"),
        (segment(0xE5, b"ab") * 5000, "too many parts"),
        (segment(0xE5, b"\xff\xda" * 501), "scans"),
    ],
)
def test_a_jpeg_of_too_many_segments_or_scans(tmp_path: Path, segments: bytes, word: str) -> None:
    path = tmp_path / "x.jpg"
    PIL.Image.fromarray(noise(3)).save(path)
    data = path.read_bytes()
    path.write_bytes(data[:2] + segments + data[2:])
    refused(lambda: read_image(path), "x.jpg", word)


def test_a_jpeg_that_a_film_follows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jpeg, "_MOST_SCANS", 20)
    path = tmp_path / "x.jpg"
    PIL.Image.fromarray(noise(3)).save(path)
    path.write_bytes(path.read_bytes() + (b"\xff\xda" + bytes(2**15)) * 40)
    assert read_image(path).rgb.shape[0] == 3


def test_a_png_of_too_many_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(png_codec, "MOST_CHUNKS", 100)
    path = tmp_path / "x.png"
    PIL.Image.fromarray(noise(3)).save(path)
    data = path.read_bytes()
    chunk = struct.pack(">I4sI", 0, b"abCd", zlib.crc32(b"abCd"))
    path.write_bytes(data[:-12] + chunk * 100 + data[-12:])
    assert read_image(path).rgb.shape[0] == 3
    path.write_bytes(data[:-12] + chunk * 101 + data[-12:])
    refused(lambda: read_image(path), "x.png", "too many chunks")


def test_a_tiff_of_many_small_strips(tmp_path: Path) -> None:
    samples = noise(1, height=20_000, width=1)
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, samples[..., 0], compression="zlib", rowsperstrip=1)
    rgb, _ = open_source(path).read(0, 20_000, 0, 1)
    assert np.array_equal((rgb[0] * 255).round().numpy(), samples[..., 0])


def test_very_many_chunks_of_a_sample_each(tmp_path: Path) -> None:
    path = tmp_path / "x.zarr"
    zarr.create_array(str(path), shape=(3000, 3000, 3), chunks=(1, 1, 1), dtype="uint8")
    refused(lambda: open_source(path), "27,000,000 chunks", "larger chunks")
    zarr.create_array(
        str(path), shape=(100, 100), chunks=(1, 1), dtype="uint8", overwrite=True, fill_value=7
    )
    assert int(open_source(path).read(0, 2, 0, 2)[0].sum() * 255) == 12 * 7


CODECS = zarr.codecs
V2_CODECS = [
    *(numcodecs.Zlib, numcodecs.GZip, numcodecs.Zstd, numcodecs.Blosc, numcodecs.LZ4),
    *(numcodecs.BZ2, numcodecs.LZMA),
]


@pytest.mark.parametrize(
    "options",
    [
        {"compressors": CODECS.GzipCodec()},
        {"compressors": CODECS.ZstdCodec()},
        {"compressors": CODECS.BloscCodec()},
        {"compressors": [CODECS.GzipCodec(), CODECS.GzipCodec()]},
        {"compressors": [CODECS.Crc32cCodec(), CODECS.ZstdCodec()]},
        {"compressors": CODECS.GzipCodec(), "shards": (1536, 2048)},
        *({"compressors": codec(), "zarr_format": 2} for codec in V2_CODECS),
        {"filters": numcodecs.Zlib(), "compressors": None, "zarr_format": 2},
    ],
    ids=str,
)
def test_a_chunk_that_inflates_to_more_than_its_samples(tmp_path: Path, options: Any) -> None:
    path = tmp_path / "x.zarr"
    shape = (1536, 2048)
    whole = {"shape": shape, "chunks": (768, 2048) if "shards" in options else shape}
    array = zarr.create_array(str(path), dtype="uint8", **whole, **options)
    array[:] = noise(1, height=shape[0], width=shape[1])[..., 0]
    expected = array[:8]
    assert np.array_equal((open_source(path).read(0, 8, 0, 2048)[0][0] * 255).numpy(), expected)
    # The same chunks for an array that says it is smaller.
    file = path / (".zarray" if options.get("zarr_format") == 2 else "zarr.json")
    text = file.read_text()
    for side, smaller in ((2048, 16), (1536, 16), (768, 8)):
        text = text.replace(str(side), str(smaller))
    file.write_text(text)
    source = open_source(path)
    refused(lambda: source.read(0, 8, 0, 8), "x.zarr", "more than its samples")
