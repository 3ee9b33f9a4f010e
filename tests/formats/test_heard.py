"""What decoders say beside what they return is listened to, and is not shown."""

from __future__ import annotations

import io
import logging
import struct
import threading
import warnings

import PIL.Image
import pytest
import tifffile

from diinn_fast.formats import read_image
from diinn_fast.formats.heard import tifffile_heard, without_warnings
from tests.helpers.pictures import noise, refused

ROWS_PER_STRIP = 278
STRIP_OFFSETS = 273
FLOAT = 11


def tiff_with(tag: int, compression: str, *, code: int | None = None, kind: int = 0) -> bytes:
    """A TIFF of which one tag has another number, or another type."""
    buffer = io.BytesIO()
    PIL.Image.fromarray(noise(3)).save(buffer, "TIFF", compression=compression)
    data = bytearray(buffer.getvalue())
    (start,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, start)
    for place in range(start + 2, start + 2 + 12 * count, 12):
        found, old = struct.unpack_from("<HH", data, place)
        if found == tag:
            struct.pack_into("<HH", data, place, code or tag, kind or old)
    return bytes(data)


def test_what_libtiff_misses_is_the_reason(capfd: pytest.CaptureFixture[str]) -> None:
    data = tiff_with(STRIP_OFFSETS, "jpeg", code=65_000)
    refused(lambda: read_image(data), "damaged", "MissingRequired", "StripOffsets")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("tag", [STRIP_OFFSETS, ROWS_PER_STRIP, 256, 257, 279])
def test_numbers_of_tags_that_are_no_whole_numbers(tag: int) -> None:
    refused(lambda: read_image(tiff_with(tag, "tiff_lzw", kind=FLOAT)), "damaged")


def test_words_of_tifffile_reach_the_block_of_their_thread_alone() -> None:
    log = logging.getLogger("tifffile")
    ready = threading.Barrier(2)
    heard: dict[str, list[str]] = {}

    def listen(word: str) -> None:
        with tifffile_heard() as said:
            ready.wait()
            log.warning(word)
            ready.wait()
        heard[word] = said

    threads = [threading.Thread(target=listen, args=(word,)) for word in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert heard == {"one": ["one"], "two": ["two"]}


def test_tifffile_is_silenced_within_blocks_only(caplog: pytest.LogCaptureFixture) -> None:
    with tifffile_heard():
        logging.getLogger("tifffile").warning("within")
    logging.getLogger("tifffile").warning("behind")
    assert caplog.messages == ["behind"]


def test_warnings_of_decoders_alone_are_ignored_until_the_last_block_ends() -> None:
    def warn(module: str) -> None:
        warnings.warn_explicit("odd", UserWarning, "x.py", 1, module)

    first = without_warnings()
    second = without_warnings()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        before = list(warnings.filters)
        # Blocks of two threads end in any order.
        first.__enter__()
        second.__enter__()
        warn("mine")
        first.__exit__(None, None, None)
        warn("PIL.TiffImagePlugin")
        assert len(said) == 1
        second.__exit__(None, None, None)
        assert warnings.filters == before
        warn("PIL.TiffImagePlugin")
    assert len(said) == 2


def test_damaged_exif_is_no_warning_of_pillows() -> None:
    exif = PIL.Image.Exif()
    exif[271] = "a maker whose name is long"
    buffer = io.BytesIO()
    PIL.Image.fromarray(noise(3)).save(buffer, "JPEG", exif=exif)
    data = bytearray(buffer.getvalue())
    block = data.index(b"Exif\0\0") + 6
    struct.pack_into("<I", data, block + 8 + 2 + 8, 2**30)  # where the maker's name stands
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = read_image(bytes(data))
    assert "damaged EXIF tags" in image.metadata.lost


def test_a_damaged_tag_is_named_where_it_is_the_only_one() -> None:
    buffer = io.BytesIO()
    tag = (42112, 2, 40, "<GDALMetadata>0123456789</GDALMetadata>", True)
    tifffile.imwrite(buffer, noise(3), extratags=[tag], software=False, metadata=None)
    data = bytearray(buffer.getvalue())
    entry = data.index(struct.pack("<HH", 42112, 2))
    struct.pack_into("<I", data, entry + 8, 2**30)  # where the text stands
    assert read_image(bytes(data)).metadata.lost == ("damaged EXIF tags",)
