"""Directories of tags, as TIFF, BigTIFF and EXIF have them: read and packed, with values as bytes.

Source: TIFF revision 6.0, section 2; the BigTIFF design (Aware Systems).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import Any, BinaryIO, NamedTuple

import numpy as np

ASCII = 2
SHORT = 3
LONG = 4
RATIONAL = 5
SIGNED_RATIONAL = 10
DOUBLE = 12
"""TIFF's numbers of types."""

ITEM_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
"""Bytes of an item of each type that classic TIFF has."""

_WORD_BYTES = ITEM_BYTES | {RATIONAL: 4, SIGNED_RATIONAL: 4}
"""Bytes that belong together when the byte order changes."""

MOST_TAGS = 2_000
MOST_BYTES = 2**24
"""Of a directory. What has more is damaged, or no metadata of a picture."""

DETAILS = 34665
GPS = 34853
INTEROP = 40965
"""Tags that point to further directories."""

POINTERS = frozenset({DETAILS, GPS, INTEROP})

MAKER_NOTE = 37500


class Tag(NamedTuple):
    """One tag: its code, TIFF's number of its type, how many items, and their bytes."""

    code: int
    kind: int
    items: int
    data: bytes


def ascii_tag(code: int, text: str) -> Tag:
    """A tag of text, which is the same in both byte orders."""
    data = text.encode() + b"\0"
    return Tag(code, ASCII, len(data), data)


def swapped(tag: Tag) -> bytes:
    """The bytes of a tag's values in the other byte order."""
    return np.frombuffer(tag.data, f"u{_WORD_BYTES[tag.kind]}").byteswap().tobytes()


def number(order: str, tag: Tag) -> Fraction | int | None:
    """First value of a tag of whole numbers or fractions."""
    codes = {1: "B", SHORT: "H", LONG: "I", RATIONAL: "II", 8: "h", 9: "i", 10: "ii"}
    if tag.kind not in codes or len(tag.data) < ITEM_BYTES[tag.kind]:
        return None
    values = struct.unpack_from(order + codes[tag.kind], tag.data)
    if len(values) == 1:
        return int(values[0])
    return Fraction(*values) if values[1] else None


def rational(order: str, value: Fraction, kind: int = RATIONAL) -> bytes:
    """The nearest fraction of two numbers of 32 bits."""
    most = 2**32 - 1 if kind == RATIONAL else 2**31 - 1
    denominator = most if value <= 1 else max(1, int(most / value))
    near = value.limit_denominator(denominator)
    numerator = min(near.numerator, most)
    return struct.pack(order + ("II" if kind == RATIONAL else "ii"), numerator, near.denominator)


class Directories:
    """Reads directories of tags of a TIFF, BigTIFF or EXIF block.

    Attributes:
        order: byte order, "<" or ">".
        damaged: a tag or directory could not be read, and was passed over.
        note_at: where the maker note stands, 0 if none was met.
    """

    def __init__(self, file: BinaryIO, order: str, *, big: bool = False) -> None:
        self._file = file
        self._count, self._entry, self._inline = ("Q", "HHQ", 8) if big else ("H", "HHI", 4)
        self._word = "Q" if big else "I"
        self.order = order
        self.damaged = False
        self.note_at = 0

    def tags(self, start: int, wanted: Callable[[int], bool] = lambda code: True) -> list[Tag]:
        """The tags of one directory; ValueError if there is none."""
        (count,) = self._unpack(start, self._count)
        if not 0 < count <= MOST_TAGS:
            raise ValueError("no directory of tags")
        # A damaged entry is passed over; the others may still be right.
        size = struct.calcsize("=" + self._entry) + self._inline
        at = start + struct.calcsize("=" + self._count)
        found: dict[int, Tag] = {}
        room = MOST_BYTES
        for place in range(count):
            try:
                tag, room = self._tag(at + place * size, wanted, room)
            except ValueError:
                self.damaged = True
                continue
            if tag is not None:
                found.setdefault(tag.code, tag)
        return list(found.values())

    def _tag(self, at: int, wanted: Callable[[int], bool], room: int) -> tuple[Tag | None, int]:
        code, kind, items = self._unpack(at, self._entry)
        if not wanted(code):
            return None, room
        if kind in (16, 17, 18) and code in POINTERS:  # of 64 bits
            return Tag(code, kind, 1, self._bytes(at + 12, 8)), room
        size = items * ITEM_BYTES.get(kind, 0)
        if kind not in ITEM_BYTES or size > room:
            raise ValueError("a damaged tag")
        place = at + struct.calcsize("=" + self._entry)
        # Small values stand in the entry itself, larger ones where it points.
        if size > self._inline:
            (place,) = self._unpack(place, self._word)
        if code == MAKER_NOTE and size > 4:
            self.note_at = place
        return Tag(code, kind, items, self._bytes(place, size)), room - size

    def below(self, tags: list[Tag], code: int) -> list[Tag]:
        """The directory that a tag points to; empty if there is none."""
        pointer = next((tag for tag in tags if tag.code == code), None)
        if pointer is None:
            return []
        try:
            start = struct.unpack(
                self.order + ("Q" if len(pointer.data) == 8 else "I"), pointer.data
            )
            return self.tags(start[0])
        except (ValueError, struct.error):
            self.damaged = True
            return []

    def _unpack(self, at: int, layout: str) -> tuple[Any, ...]:
        layout = self.order + layout
        return struct.unpack(layout, self._bytes(at, struct.calcsize(layout)))

    def _bytes(self, at: int, size: int) -> bytes:
        try:
            self._file.seek(at)
            data = self._file.read(size)
        except (OSError, OverflowError) as error:
            raise ValueError("a damaged tag") from error
        if len(data) < size:
            raise ValueError("a damaged tag")
        return data


class Packer:
    """Puts directories one behind the other, each with the values that it points to.

    Args:
        order: byte order, "<" or ">", of all values.
        start: even offset of what is packed, from the beginning of the block or file.
        big: of BigTIFF.
        note_at: where the maker note has been put already.
    """

    def __init__(
        self, order: str, start: int, *, big: bool = False, note_at: int | None = None
    ) -> None:
        self.data = bytearray()
        self._note_at = note_at
        self._order = order
        self._start = start
        self._count, self._entry, self._word = ("Q", "HHQ", "Q") if big else ("H", "HHI", "I")
        self._inline = 8 if big else 4

    def pointer(self, code: int, offset: int) -> Tag:
        """A tag that points to a directory."""
        kind = 18 if self._inline == 8 else LONG
        return Tag(code, kind, 1, struct.pack(self._order + self._word, offset))

    def add(self, unsorted: Iterable[Tag]) -> int:
        """Offset of a directory of these tags."""
        tags = sorted(unsorted)
        at = self._start + len(self.data)
        # The table first, then the values that do not fit into its entries.
        entry = struct.calcsize("=" + self._entry) + self._inline
        behind = at + struct.calcsize("=" + self._count) + len(tags) * entry + self._inline
        table = struct.pack(self._order + self._count, len(tags))
        values = bytearray()
        for tag in tags:
            table += struct.pack(self._order + self._entry, tag.code, tag.kind, tag.items)
            if len(tag.data) <= self._inline:
                table += tag.data.ljust(self._inline, b"\0")
                continue
            if tag.code == MAKER_NOTE and self._note_at is not None:
                table += struct.pack(self._order + self._word, self._note_at)
                continue
            table += struct.pack(self._order + self._word, behind + len(values))
            values += tag.data + bytes(len(tag.data) % 2)
        self.data += table + bytes(self._inline) + values
        return at
