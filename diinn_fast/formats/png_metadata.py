"""What the ancillary chunks of a PNG say, and the chunks that say it.

Source: PNG specification, third edition, sections 11.3 and 12.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from diinn_fast.metadata import Exif, Metadata, Resolution, Text
from diinn_fast.metadata.resolution import METRE, UNKNOWN, exif_resolution, resolution

JOB = "diinn_fast job"
"""Keyword of the text that tells which job has made a file."""

MOST_BYTES = 2**24
"""Of all metadata of a file, and of each text that is decompressed."""

COLOUR = ("cICP", "mDCV", "cLLI", "sRGB", "gAMA", "cHRM")
_TEXTS = ("tEXt", "zTXt", "iTXt")
_XMP = "XML:com.adobe.xmp"
_RAW = re.compile(r"Raw profile type (exif|APP1|xmp|iptc)$")

_STORAGE = ("IHDR", "PLTE", "IDAT", "IEND", "tRNS", "iCCP", "iDOT", "acTL", "fcTL", "fdAT")
_NAMES = {
    "tIME": "time of modification (tIME)",
    "bKGD": "background colour (bKGD)",
    "caBX": "content credentials (caBX)",
    "sCAL": "the size of a pixel (sCAL)",
}


class Chunk(NamedTuple):
    """Name and contents; contents that are too long, or damaged, are None."""

    name: str
    data: bytes | None


def is_metadata(name: str) -> bool:
    """Whether a chunk is no part of the picture itself."""
    return name not in _STORAGE


def metadata_of_chunks(chunks: Iterable[Chunk]) -> Metadata:
    """Of the picture as it is stored; ICC profiles are left to the decoder."""
    found, texts, lost = _sorted_out(chunks)
    # Older programs keep EXIF, XMP and IPTC as hexadecimal text; the chunks of today come first.
    raw = {text.keyword: text.text for text in texts if _RAW.match(text.keyword)}
    block = found.get("eXIf") or _raw(raw, "exif") or _raw(raw, "APP1")
    exif = _exif(block, lost)
    packet = next((text.text.encode() for text in texts if text.keyword == _XMP), None)
    return Metadata(
        resolution=_resolution(found.get("pHYs", b"")) or exif_resolution(exif),
        exif=exif,
        xmp=packet or _raw(raw, "xmp") or None,
        iptc=_raw(raw, "iptc") or None,
        texts=tuple(text for text in texts if text.keyword not in (_XMP, *raw)),
        colour=tuple((name, found[name]) for name in COLOUR if name in found),
        lost=tuple(dict.fromkeys(lost)),
    )


def _sorted_out(chunks: Iterable[Chunk]) -> tuple[dict[str, bytes], list[Text], list[str]]:
    """(chunks that say one thing, texts, names of what is not kept)."""
    found: dict[str, bytes] = {}
    texts: list[Text] = []
    lost: list[str] = []
    for name, data in chunks:
        text = _text_of(name, data) if name in _TEXTS and data is not None else None
        if data is None or (name in _TEXTS and text is None):
            lost.append(f"a damaged or very long {name}")
        elif text is not None:
            # The fingerprint of our own job is of the old file, not of the new one.
            texts += [text] if text.keyword != JOB else []
        elif name in (*COLOUR, "eXIf", "pHYs"):
            # Of a chunk that may stand once, the first counts, as in other readers.
            found.setdefault(name, data)
        else:
            lost.append(_NAMES.get(name, f"chunk {name}"))
    return found, texts, lost


def chunks_of(metadata: Metadata, job: str) -> Iterator[tuple[bytes, bytes]]:
    """(name, contents) of the chunks that stand before the pixels, in an allowed order."""
    for name, data in metadata.colour:
        if not (name == "sRGB" and metadata.icc is not None):  # the two exclude each other
            yield name.encode(), data
    if metadata.icc is not None:
        yield b"iCCP", b"ICC Profile\0\0" + zlib.compress(metadata.icc)
    if metadata.resolution is not None:
        yield b"pHYs", _physical(metadata.resolution)
    if metadata.exif is not None:
        yield b"eXIf", metadata.exif.tobytes()
    for text in metadata.texts:
        yield _chunk_of(text)
    if metadata.xmp is not None:
        yield b"iTXt", _XMP.encode() + b"\0\0\0\0\0" + metadata.xmp
    if job:
        yield b"tEXt", JOB.encode() + b"\0" + job.encode("latin-1")


def fits_physical(value: Resolution) -> bool:
    """Whether pHYs can hold a resolution."""
    if value.unit == UNKNOWN:
        return True
    return all(1 <= round(number) < 2**31 for number in value.per(METRE))


def _physical(value: Resolution) -> bytes:
    if value.unit == UNKNOWN:
        return struct.pack(">IIB", *value.aspect(2**31 - 1), 0)
    return struct.pack(">IIB", *(int(number + 0.5) for number in value.per(METRE)), 1)


def _resolution(physical: bytes) -> Resolution | None:
    if len(physical) != 9:
        return None
    horizontal, vertical, unit = struct.unpack(">IIB", physical)
    found = resolution(horizontal, vertical, METRE if unit == 1 else UNKNOWN)
    return None if found is None or found.says_nothing else found


def _exif(block: bytes | None, lost: list[str]) -> Exif | None:
    if not block:
        return None
    try:
        return Exif.parse(block)
    except ValueError:
        lost.append("EXIF that cannot be read")
        return None


def _text_of(name: str, data: bytes) -> Text | None:
    """One text, None if it is damaged or inflates beyond `MOST_BYTES`."""
    keyword, _, rest = data.partition(b"\0")
    word = keyword.decode("latin-1")
    if name == "tEXt":
        return Text(word, rest.decode("latin-1"))
    if name == "zTXt":
        inflated = _inflated(rest[1:])
        return None if inflated is None else Text(word, inflated.decode("latin-1"))
    # iTXt: flag and method of compression, language, translated keyword, text.
    compressed = rest[:1] == b"\1"
    language, _, rest = rest[2:].partition(b"\0")
    translated, _, body = rest.partition(b"\0")
    text = _inflated(body) if compressed else body
    if text is None:
        return None
    words = (part.decode("utf-8", "replace") for part in (text, language, translated))
    return Text(word, *words)


def _chunk_of(text: Text) -> tuple[bytes, bytes]:
    keyword = text.keyword.encode("latin-1", "replace")[:79] or b"Comment"
    if not (text.language or text.translated):
        try:
            return b"tEXt", keyword + b"\0" + text.text.replace("\0", " ").encode("latin-1")
        except UnicodeEncodeError:
            pass
    about = text.language.encode() + b"\0" + text.translated.encode() + b"\0"
    return b"iTXt", keyword + b"\0\0\0" + about + text.text.encode()


def _inflated(data: bytes) -> bytes | None:
    try:
        inflater = zlib.decompressobj()
        text = inflater.decompress(data, MOST_BYTES)
    except zlib.error:
        return None
    return text if inflater.eof else None


def _raw(texts: dict[str, str], kind: str) -> bytes | None:
    """A profile that ImageMagick has written as digits, after its name and length."""
    text = texts.get(f"Raw profile type {kind}")
    if text is None:
        return None
    try:
        data = bytes.fromhex("".join(text.split()[2:]))
    except ValueError:
        return None
    if kind == "iptc" and data.startswith(b"8BIM\x04\x04"):
        length = int.from_bytes(data[8:12], "big")
        return data[12 : 12 + length]
    return data
