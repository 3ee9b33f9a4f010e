"""Elements of XML that is kept as text, because a parser would not give back the same text.

Files may hold any text: it is looked through once, whatever it says.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

_TAG = re.compile(r"<(/?)([\w:.-]+)(?![\w:.-])([^<>]*)>")
"""Of an element's beginning or end. No part of it can be matched in two ways, which would take time
that grows with the square of a text without an end.
"""

Wanted = Callable[[str, str], bool]
"""Whether an element is looked for, by its name and its attributes."""


class Element(NamedTuple):
    """Name, attributes as text, and place of the whole element in the text."""

    name: str
    attributes: str
    start: int
    end: int


def elements(text: str, wanted: Wanted) -> Iterator[Element]:
    """Those that are wanted and lie in no other such; one without an end is none, and all behind it
    lie in it.
    """
    first = None
    depth = 0
    for tag in _TAG.finditer(text):
        closing, name, attributes = tag.groups()
        alone = attributes.endswith("/")
        if first is None:
            if closing or not wanted(name, attributes):
                continue
            first = tag
        elif name != first[2]:
            continue
        # Elements of one name may lie in each other.
        depth += 0 if alone else -1 if closing else 1
        if depth == 0:
            yield Element(first[2], first[3], first.start(), tag.end())
            first = None


def without(text: str, found: Iterable[Element]) -> str:
    """The text without those elements."""
    kept = []
    at = 0
    for element in found:
        kept.append(text[at : element.start])
        at = element.end
    return "".join(kept) + text[at:]
