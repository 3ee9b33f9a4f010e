"""The pictures of a server: those it was started with, and a few dropped onto the page."""

from __future__ import annotations

import re
import secrets
import unicodedata
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence

from diinn_fast.errors import ImageError
from diinn_fast.files import size_text
from diinn_fast.inference import View
from diinn_fast.inference.engine import Engine
from diinn_fast.inference.ranges import DTYPE, Asked
from diinn_fast.inference.sources import open_source
from diinn_fast.serve.picture import Picture

MAX_DROPPED = 4
"""Most dropped pictures; a further one takes the place of the oldest."""

MAX_FILE = 64 << 20
"""Most bytes of a dropped file."""

MAX_DECODED = 512 << 20
"""Most bytes that decoding a dropped file may take."""

MAX_PIXELS = 1 << 25
"""Most pixels of a dropped picture."""

Opener = Callable[[bytes], View]


class Gallery:
    """Pictures by name.

    Args:
        pictures: those that stay.
        opener: makes the view of a dropped file's contents; None: nothing can be dropped.
    """

    def __init__(self, pictures: Sequence[Picture], opener: Opener | None = None) -> None:
        self._listed = {picture.name: picture for picture in pictures}
        self._dropped: OrderedDict[str, Picture] = OrderedDict()
        self.opener = opener

    def __iter__(self) -> Iterator[Picture]:
        yield from [*self._listed.values(), *self._dropped.values()]

    def find(self, name: str) -> Picture | None:
        """The picture of a name, or None."""
        return self._listed.get(name) or self._dropped.get(name)

    def drop(self, title: str, view: View) -> Picture:
        """Take a view under a new name made of a title; the oldest dropped one may have to go.

        It holds no file: its memory is free when the last answer of it has been made.
        """
        picture = Picture(f"{plain_name(title)}-{secrets.token_hex(4)}", view)
        self._dropped[picture.name] = picture
        while len(self._dropped) > MAX_DROPPED:
            self._dropped.popitem(last=False)
        return picture

    def close(self) -> None:
        """Release files and features."""
        for picture in self:
            picture.close()


def dropped_view(engine: Engine, data: bytes, max_features: int, range: Asked = DTYPE) -> View:
    """The view of a file's contents; ImageError for what is no picture, or too large."""
    source = open_source(data, max_bytes=MAX_DECODED, range=range)
    if source.height * source.width > MAX_PIXELS:
        source.close()
        raise ImageError(
            f"a dropped picture has {MAX_PIXELS >> 20} megapixels at most: "
            "name larger ones at the start of the server."
        )
    return View(engine, source, max_features)


def plain_name(title: str) -> str:
    """A title in letters that need no escape in a URL."""
    plain = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9_-]+", "-", plain)[:60].strip("-") or "picture"


def too_large() -> str:
    """What is said to a file of more than `MAX_FILE` bytes."""
    return (
        f"a dropped file has {size_text(MAX_FILE)} at most: "
        "name larger ones at the start of the server"
    )
