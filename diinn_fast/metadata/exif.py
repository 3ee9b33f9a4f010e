"""EXIF: a block of tags in TIFF's form, and what has to change in it when the picture does.

Values stay as the bytes that they are, in their own byte order, so that nothing is lost that this
module does not know; a maker note keeps its place in the block, because the offsets within it count
from the block's beginning.

Source: CIPA DC-008 (Exif 3.0), sections 4.5 and 4.6; TIFF revision 6.0, section 2.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from io import BytesIO
from typing import Any

from diinn_fast.metadata.scaling import Scaling
from diinn_fast.metadata.tags import (
    ASCII,
    DETAILS,
    GPS,
    INTEROP,
    LONG,
    MAKER_NOTE,
    POINTERS,
    RATIONAL,
    SHORT,
    SIGNED_RATIONAL,
    Directories,
    Packer,
    Tag,
    number,
    rational,
    swapped,
)

PREFIX = b"Exif\0\0"
"""What stands before the block in JPEG, and by habit elsewhere."""

ORIENTATION = 274
X_RESOLUTION = 282
Y_RESOLUTION = 283
RESOLUTION_UNIT = 296
DESCRIPTION = 270
SOFTWARE = 305
ARTIST = 315
COPYRIGHT = 33432
_COLOUR_SPACE = 40961
_INDEX = 1  # of the interoperability directory
_SUBJECTS = (37396, 41492)  # area and place, in pixels

STORAGE = frozenset({254, 255, *range(256, 260), 262, 263, 266, 273, *range(277, 282), 284}) | {
    *(288, 289, 290, 291, 292, 293, 317, 320, 321, 322, 323, 324, 325, 330, 332, 334, 338, 339),
    *(340, 341, 347, 512, 513, 514, 515, 517, 518, 519, 520, 521, 529, 530, 531, 532, 34675),
}
"""Tags that tell how samples are stored."""


@dataclass(frozen=True)
class Exif:
    """The tags of a picture.

    Attributes:
        order: byte order of the values, "<" or ">".
        main: of the picture as a whole (camera, date, artist).
        details, gps, interop: of the directories that have their own tags.
        note_at: where the maker note stood, 0 if there is none.
        damaged: some tags could not be read, and are not here.
    """

    order: str = "<"
    main: tuple[Tag, ...] = ()
    details: tuple[Tag, ...] = ()
    gps: tuple[Tag, ...] = ()
    interop: tuple[Tag, ...] = ()
    note_at: int = 0
    damaged: bool = False

    @classmethod
    def parse(cls, block: bytes) -> Exif:
        """Of a block, with or without `PREFIX`; the thumbnail behind is left out.

        Raises:
            ValueError: it has no directory of tags.
        """
        while block.startswith(PREFIX):
            block = block[len(PREFIX) :]
        order = {b"II": "<", b"MM": ">"}.get(block[:2])
        if order is None or len(block) < 8:
            raise ValueError("no EXIF block")
        (start,) = struct.unpack_from(order + "I", block, 4)
        return cls.of(Directories(BytesIO(block), order), start)

    @classmethod
    def of(
        cls,
        directories: Directories,
        start: int,
        wanted: Callable[[int], bool] = lambda code: True,
    ) -> Exif:
        """Of all directories from the first one at ``start``, of which the tags that are wanted.

        Raises:
            ValueError: there is no directory.
        """
        main = directories.tags(start, lambda code: code in POINTERS or wanted(code))
        details = directories.below(main, DETAILS)
        gps = directories.below(main, GPS)
        interop = directories.below(details, INTEROP)

        def kept(tags: list[Tag]) -> tuple[Tag, ...]:
            return tuple(sorted(tag for tag in tags if tag.code not in POINTERS))

        found = kept(main), kept(details), kept(gps), kept(interop)
        return cls(directories.order, *found, directories.note_at, directories.damaged)

    @property
    def empty(self) -> bool:
        """Nothing is said."""
        return not (self.main or self.details or self.gps or self.interop)

    def text(self, code: int) -> str | None:
        """Of a tag of ``main``."""
        for tag in self.main:
            if tag.code == code and tag.kind in (ASCII, 1, 7):
                return tag.data.rstrip(b"\0").decode("utf-8", "replace")
        return None

    def value(self, code: int) -> Fraction | int | None:
        """First value of a tag of ``main`` or ``details``; None if there is none."""
        for tag in (*self.main, *self.details):
            if tag.code == code and tag.data:
                return number(self.order, tag)
        return None

    @property
    def adobe_rgb(self) -> bool:
        """The camera says that its colours are not those of sRGB, without a profile; the only
        other ones that cameras have are those of AdobeRGB.
        """
        index = next((tag.data[:3] for tag in self.interop if tag.code == _INDEX), b"")
        return index == b"R03" or (index != b"R98" and self.value(_COLOUR_SPACE) in (2, 65535))

    def with_main(self, *tags: Tag) -> Exif:
        """Some tags of ``main`` replaced or added."""
        codes = {tag.code for tag in tags}
        kept = [tag for tag in self.main if tag.code not in codes]
        return replace(self, main=tuple(sorted([*kept, *tags])))

    def without_main(self, codes: Iterable[int]) -> Exif:
        """Some tags of ``main`` left out."""
        left = frozenset(codes)
        return replace(self, main=tuple(tag for tag in self.main if tag.code not in left))

    @property
    def has_note(self) -> bool:
        """Whether there is a maker note."""
        return any(tag.code == MAKER_NOTE for tag in self.details)

    def without_note(self) -> Exif:
        """Without the maker note, whose meaning depends on its place."""
        details = tuple(tag for tag in self.details if tag.code != MAKER_NOTE)
        return replace(self, details=details, note_at=0)

    def short(self, code: int, value: int) -> Tag:
        """A tag of one small number."""
        return Tag(code, SHORT, 1, struct.pack(self.order + "H", value))

    def rational(self, code: int, value: float | Fraction) -> Tag:
        """A tag of one positive fraction of two 32-bit numbers."""
        return Tag(code, RATIONAL, 1, rational(self.order, Fraction(value)))

    def upright(self, orientation: object, size: tuple[int, int]) -> Exif:
        """Of the picture turned as its orientation said; ``size``: (height, width) when stored."""
        turned = orientation in (5, 6, 7, 8)
        exif = self.without_main({ORIENTATION})
        if not exif.empty and len(exif.main) < len(self.main):
            exif = exif.with_main(self.short(ORIENTATION, 1))
        if turned:
            exif = exif._axes_exchanged()
        new = (size[1], size[0]) if turned else size
        return exif._with_places(lambda x, y: _turned(x, y, orientation, size), turned)._sized(new)

    def rescaled(self, scaling: Scaling) -> Exif:
        """Of the picture at another size: its sizes, resolution and places in pixels."""
        down = scaling.down
        across = scaling.across
        factors = {X_RESOLUTION: across, Y_RESOLUTION: down, 41486: across, 41487: down}

        # Rationals alone: whatever else stands under these codes is damaged, and stays as it is.
        def changed(tag: Tag) -> Tag:
            value = number(self.order, tag) if tag.code in factors else None
            if not value or tag.kind not in (RATIONAL, SIGNED_RATIONAL):
                return tag
            return tag._replace(data=rational(self.order, value * factors[tag.code], tag.kind))

        exif = replace(
            self, main=tuple(map(changed, self.main)), details=tuple(map(changed, self.details))
        )
        placed = exif._with_places(lambda x, y: (x * across, y * down), False)
        return placed._sized(scaling.new)

    def little_endian(self) -> Exif:
        """With values in the byte order of our TIFFs."""
        if self.order == "<":
            return self

        def turned(tags: tuple[Tag, ...]) -> tuple[Tag, ...]:
            return tuple(tag._replace(data=swapped(tag)) for tag in tags)

        parts = (self.main, self.details, self.gps, self.interop)
        main, details, gps, interop = map(turned, parts)
        return Exif("<", main, details, gps, interop, self.note_at, self.damaged)

    def tobytes(self) -> bytes:
        """The block, without `PREFIX`."""
        start = 8
        note = next((tag.data for tag in self.details if tag.code == MAKER_NOTE), b"")
        pinned = 8 <= self.note_at <= 2**15 and len(note) > 4
        head = b"II*\0" if self.order == "<" else b"MM\0*"
        if pinned:
            start = self.note_at + len(note) + len(note) % 2
        packer = Packer(self.order, start, note_at=self.note_at if pinned else None)
        pointers = self.pack_below(packer)
        first = packer.add([*self.main, *pointers])
        between = (bytes(self.note_at - 8) + note + bytes(len(note) % 2)) if pinned else b""
        return head + struct.pack(self.order + "I", first) + between + packer.data

    def pack_below(self, packer: Packer) -> list[Tag]:
        """Pack the directories below the first; the pointers to them."""
        pointers = []
        details = list(self.details)
        if self.interop:
            details.append(packer.pointer(INTEROP, packer.add(self.interop)))
        if details:
            pointers.append(packer.pointer(DETAILS, packer.add(details)))
        if self.gps:
            pointers.append(packer.pointer(GPS, packer.add(self.gps)))
        return pointers

    def _sized(self, size: tuple[int, int]) -> Exif:
        """Wherever a size in pixels stands, this one (height, width)."""
        height, width = size
        codes = {256: width, 257: height, 40962: width, 40963: height, 4097: width, 4098: height}

        def changed(tag: Tag) -> Tag:
            if tag.code not in codes:
                return tag
            value = codes[tag.code]
            # A short stays one while the number fits: some readers know no other.
            if tag.kind == SHORT and value < 2**16:
                return self.short(tag.code, value)
            return Tag(tag.code, LONG, 1, struct.pack(self.order + "I", value))

        parts = (self.main, self.details, self.interop)
        main, details, interop = (tuple(map(changed, tags)) for tags in parts)
        return replace(self, main=main, details=details, interop=interop)

    def _axes_exchanged(self) -> Exif:
        """Resolutions of the axes exchanged."""
        others = {
            X_RESOLUTION: Y_RESOLUTION,
            Y_RESOLUTION: X_RESOLUTION,
            41486: 41487,
            41487: 41486,
        }

        def changed(tags: tuple[Tag, ...]) -> tuple[Tag, ...]:
            return tuple(sorted(tag._replace(code=others.get(tag.code, tag.code)) for tag in tags))

        return replace(self, main=changed(self.main), details=changed(self.details))

    def _with_places(self, place: Callable[[int, int], tuple[Any, ...]], turned: bool) -> Exif:
        """Points, circles (with a diameter) and boxes (with width and height) in pixels moved."""

        def changed(tag: Tag) -> Tag:
            if tag.code not in _SUBJECTS or tag.kind != SHORT or not 2 <= tag.items <= 4:
                return tag
            values = list(struct.unpack(f"{self.order}{tag.items}H", tag.data))
            x, y = place(values[0], values[1])
            ox, oy = place(0, 0)
            # A point has none, a circle a diameter, a box width and height.
            sides = values[2:]
            if len(sides) == 2:
                far = place(sides[0], sides[1])
                sides = [abs(far[0] - ox), abs(far[1] - oy)]
            elif sides and not turned:
                far = place(sides[0], sides[0])
                sides = [max(abs(far[0] - ox), abs(far[1] - oy))]
            numbers = [min(65535, max(0, round(value))) for value in (x, y, *sides)]
            return tag._replace(data=struct.pack(f"{self.order}{tag.items}H", *numbers))

        return replace(self, details=tuple(map(changed, self.details)))


def _turned(x: int, y: int, orientation: object, size: tuple[int, int]) -> tuple[int, int]:
    """Where a point of the stored picture lies in the upright one."""
    height, width = size
    if orientation in (2, 3, 7, 8):
        x = width - x
    if orientation in (3, 4, 6, 7):
        y = height - y
    return (y, x) if orientation in (5, 6, 7, 8) else (x, y)
