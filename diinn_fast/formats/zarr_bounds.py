"""Arrays of zarr-python whose chunks are not decompressed beyond the samples that they stand for: a
chunk of some kilobytes may hold a gigabyte.

Source: RFC 8878 (Zstandard frames); Blosc's header of version 1; numcodecs' lz4.
"""

from __future__ import annotations

import bz2
import lzma
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

_PIECE = 2**18
_ZSTD_MAGIC = 0xFD2FB528
_ZSTD_BLOCK = 2**17
"""Most bytes that a compressed block of Zstandard stands for."""


def bounded_array(zarr: Any, array: Any) -> Any:
    """The same array; chunks that inflate to more than about twice their samples raise."""
    metadata = array.metadata
    if metadata.zarr_format == 2:
        most = most_inflated(math.prod(metadata.chunks) * array.dtype.itemsize)
        compressor, *filters = (
            codec and _checked_numcodec(codec, most)
            for codec in (metadata.compressor, *(metadata.filters or ()))
        )
        metadata = replace(metadata, compressor=compressor, filters=filters or None)
    else:
        check = _check_codec()
        metadata = replace(metadata, codecs=_checked(metadata.codecs, check))
    return zarr.Array(zarr.AsyncArray(metadata=metadata, store_path=array.store_path))


def most_inflated(samples: int) -> int:
    """Most bytes that a chunk may inflate to, by the bytes of its samples: checksums, headers and
    indexes are behind them.
    """
    return 2 * samples + 2**20


def _checked(codecs: tuple[Any, ...], check: Callable[[str], Any]) -> tuple[Any, ...]:
    """The chain with a check where each decompressor takes its bytes, also within shards."""
    found: list[Any] = []
    for codec in codecs:
        if hasattr(codec, "index_codecs"):
            codec = replace(codec, codecs=_checked(codec.codecs, check))
        found.append(codec)
        name = str(codec.to_dict()["name"]).rpartition(".")[2]
        if name in _SIZES:
            found.append(check(name))
    return tuple(found)


def _check_codec() -> Callable[[str], Any]:
    """A codec of Zarr v3 that passes on its bytes."""
    from zarr.abc.codec import BytesBytesCodec

    @dataclass(frozen=True)
    class Check(BytesBytesCodec):
        name: str
        is_fixed_size = True

        async def _decode_single(self, data: Any, spec: Any) -> Any:
            samples = math.prod(spec.shape) * spec.dtype.to_native_dtype().itemsize
            check_inflated(self.name, data.to_bytes(), most_inflated(samples))
            return data

        async def _encode_single(self, data: Any, spec: Any) -> Any:
            return data

        def compute_encoded_size(self, size: int, spec: Any) -> int:
            return size

    return Check


def _checked_numcodec(codec: Any, most: int) -> Any:
    """A codec of Zarr v2 that looks at what it is given first."""
    from numcodecs.abc import Codec
    from numcodecs.compat import ensure_bytes

    class Checked(Codec):  # type: ignore[misc]
        codec_id = codec.codec_id

        def encode(self, data: Any) -> Any:
            return codec.encode(data)

        def decode(self, data: Any, out: Any = None) -> Any:
            check_inflated(codec.codec_id, ensure_bytes(data), most)
            return codec.decode(data, out)

    return Checked()


def check_inflated(name: str, data: bytes, most: int) -> None:
    """Refuse data that inflates to more than ``most`` bytes, by the compression's name; those that
    are not known are left to their packages.

    Raises:
        ValueError: it is more, or damaged.
    """
    size = _SIZES.get(name)
    if size is not None and size(data, most) > most:
        raise ValueError("a chunk holds much more than its samples")


def _inflated_size(data: bytes, most: int, start: Callable[[], Any]) -> int:
    """Of one stream behind the other, as far as ``most``."""
    size = 0
    while data and size <= most:
        stream = start()
        while not stream.eof and size <= most:
            piece = stream.decompress(data, _PIECE)
            # zlib hands back what it has not taken, the others keep it.
            data = getattr(stream, "unconsumed_tail", b"")
            size += len(piece)
            if not piece and not data and not stream.eof:
                break  # cut off, which the decoder says
        data = stream.unused_data
    return size


def _zstd_size(data: bytes, most: int) -> int:
    """What all frames state or, of those that state nothing, an eighth of what their blocks may
    stand for: encoders that write now and then leave most of a block empty.
    """
    size = 0
    at = 0
    while at + 5 <= len(data):
        magic = int.from_bytes(data[at : at + 4], "little")
        if magic != _ZSTD_MAGIC:  # a frame to be passed over, or the decoder says what it is
            at += 8 + int.from_bytes(data[at + 4 : at + 8], "little")
            continue
        about = data[at + 4]
        single = about >> 5 & 1
        at += 5 + (not single) + (0, 1, 2, 4)[about & 3]
        width = (single, 2, 4, 8)[about >> 6]
        stated = int.from_bytes(data[at : at + width], "little") + (256 if width == 2 else 0)
        at, blocks = _zstd_blocks(data, at + width)
        at += 4 * (about >> 2 & 1)
        size += stated if width else blocks // 8
    return size


def _zstd_blocks(data: bytes, at: int) -> tuple[int, int]:
    """(where a frame's blocks end, most bytes that they stand for)."""
    size = 0
    last = False
    while not last and at + 3 <= len(data):
        header = int.from_bytes(data[at : at + 3], "little")
        last = bool(header & 1)
        kind = header >> 1 & 3
        length = header >> 3
        size += _ZSTD_BLOCK if kind == 2 else length
        at += 3 + (1 if kind == 1 else length)
    return at, size


_SIZES: dict[str, Callable[[bytes, int], int]] = {
    "zlib": lambda data, most: _inflated_size(data, most, lambda: zlib.decompressobj(47)),
    "gzip": lambda data, most: _inflated_size(data, most, lambda: zlib.decompressobj(47)),
    "bz2": lambda data, most: _inflated_size(data, most, bz2.BZ2Decompressor),
    "lzma": lambda data, most: _inflated_size(data, most, lzma.LZMADecompressor),
    "zstd": _zstd_size,
    "blosc": lambda data, most: int.from_bytes(data[4:8], "little"),
    "lz4": lambda data, most: int.from_bytes(data[:4], "little"),
}
"""Bytes that data inflates to, as far as they matter, by the name of its compression."""
