"""NumPy's .npy: raw samples behind a header, read and written in place.

The header ends in white space, which every reader passes over. In ours, spaces and tabs are the
bits of a checksum of the samples and of the fingerprint of the job, so that a finished output can
be told from another, and from a damaged one.

Source: NumPy's format specification (NEP 1), versions 1.0 and 2.0.
"""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np

from diinn_fast.errors import ImageError
from diinn_fast.formats.bands import bands_of_array
from diinn_fast.formats.base import Format
from diinn_fast.formats.layout import Layout, Progress
from diinn_fast.formats.positioned import PositionedFile
from diinn_fast.formats.samples import SampleFile, checksum_of
from diinn_fast.formats.sinks import SampleSink, Sink, SinkOptions, SinkTarget
from diinn_fast.formats.sources import RowsSource, Source, check_array, file_identity

_VERSION_1 = b"\x93NUMPY\x01\x00"
_HEAD = 10
"""Bytes of magic, version and length of the header."""


class Npy(Format):
    """An array [h, w] or [h, w, 1 to 4] of uint8, uint16 or float in [0, 1]; no metadata."""

    key = "npy"
    name = ".npy"
    suffixes = (".npy",)
    magics = (b"\x93NUMPY",)
    streams = True
    dtypes = ("uint8", "uint16", "float32")
    bands = True

    def open(self, path: Path, file: BinaryIO, max_bytes: int | None = None) -> Source:
        """See `Format.open`."""
        return npy_source(path)

    def sink(self, target: SinkTarget) -> Sink:
        """See `Format.sink`."""
        return NpySink(target)

    def disk_bytes(self, layout: Layout, options: SinkOptions) -> tuple[int, int]:
        """See `Format.disk_bytes`."""
        return 0, layout.nbytes + len(npy_header(layout))

    def finish_bytes(self, layout: Layout) -> int:
        """See `Format.finish_bytes`."""
        return 2**21

    def read_job(self, path: Path) -> str | None:
        """See `Format.read_job`."""
        return npy_job(path)


class NpySink(SampleSink):
    """[H, W] for grey, else [H, W, C], little-endian, C order; no metadata. Can be mapped
    (``mmap_mode="r"``).
    """

    def __init__(self, target: SinkTarget) -> None:
        self.header = npy_header(target.layout)
        super().__init__(target)

    @property
    def _data(self) -> Path:
        return self.final

    def _make_final(self, progress: Progress | None) -> None:
        samples = self._opened()
        samples.put_header(npy_header(self.layout, samples))
        samples.sync()

    def encode(self, file: BinaryIO, samples: SampleFile, progress: Progress | None) -> None:
        """See `SampleSink.encode`."""
        raise NotImplementedError("the samples are the file")


def npy_header(layout: Layout, samples: SampleFile | None = None) -> bytes:
    """The header of a layout, with its job; of samples that are complete, with a checksum of them
    and of what the header says.
    """
    fields = {
        "descr": np.lib.format.dtype_to_descr(layout.stored),
        "fortran_order": False,
        "shape": layout.shape[:2] if layout.channels == 1 else layout.shape,
    }
    buffer = BytesIO()
    np.lib.format.write_array_header_1_0(buffer, fields)
    text, _, _ = buffer.getvalue()[_HEAD:].rpartition(b"}")
    checksum = 0 if samples is None else samples.checksum(zlib.crc32(text))
    said = text + b"}" + _as_spaces(struct.pack(">I", checksum) + layout.job.encode())
    # So that samples begin at a multiple of 64 bytes.
    padded = said.ljust(-(-(_HEAD + len(said) + 1) // 64) * 64 - _HEAD - 1) + b"\n"
    return buffer.getvalue()[:8] + struct.pack("<H", len(padded)) + padded


def npy_job(path: Path) -> str | None:
    """The fingerprint in a header of ours; None if there is none, or if the samples are others than
    those that were written.
    """
    with open(path, "rb") as file:
        head = file.read(_HEAD)
        if len(head) < _HEAD or head[:8] != _VERSION_1:
            return None
        header = file.read(int.from_bytes(head[8:], "little"))
        text, _, padding = header.rpartition(b"}")
        said = _of_spaces(padding.rstrip(b"\n"))
        if padding.strip(b" \t\n") or len(said) <= 4:
            return None
        whole = struct.unpack_from(">I", said)[0] == checksum_of(file, zlib.crc32(text))
        return said[4:].decode("latin-1") if whole else None


def _as_spaces(data: bytes) -> bytes:
    bits = np.unpackbits(np.frombuffer(data, np.uint8))
    return np.where(bits, ord("\t"), ord(" ")).astype(np.uint8).tobytes()


def _of_spaces(padding: bytes) -> bytes:
    """What `_as_spaces` has made so of, without zeros at the end."""
    bits = np.frombuffer(padding, np.uint8) == ord("\t")
    return np.packbits(bits).tobytes().rstrip(b"\0")


def npy_source(path: Path) -> RowsSource:
    """ImageError for what is no array of samples or is cut off; nothing but the header is read."""
    try:
        with open(path, "rb") as file:
            # The header alone: `numpy.load` would map the file, or run a pickle if asked to.
            major, _ = np.lib.format.read_magic(file)
            read = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}[
                major
            ]
            shape, fortran, dtype = read(file)
            start = file.tell()
            size = file.seek(0, 2)
    except OSError:
        raise
    except Exception as error:  # a header is Python, and its parser raises what it likes
        raise ImageError(
            f"{path} is no .npy file that holds an array of numbers: save it again."
        ) from error
    full = check_array(path, shape, dtype)
    # Regions of rows would be spread over the whole file.
    if fortran and full[:2] != (1, 1):
        raise ImageError(f"{path} is stored column by column: save np.ascontiguousarray of it.")
    if size < start + full[0] * full[1] * full[2] * dtype.itemsize:
        raise ImageError(f"{path} is cut off: fetch or save the file again.")
    identity = file_identity(path)
    each = bands_of_array(full[2])
    return RowsSource(str(path), PositionedFile(path), start, full, dtype, identity, each=each)
