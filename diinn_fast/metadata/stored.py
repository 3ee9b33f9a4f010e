"""Metadata as JSON, for formats whose attributes are JSON."""

from __future__ import annotations

import base64
from typing import Any

from diinn_fast.metadata.exif import Exif
from diinn_fast.metadata.resolution import UNITS, resolution
from diinn_fast.metadata.space import Space
from diinn_fast.metadata.tags import ITEM_BYTES, Tag
from diinn_fast.metadata.value import Metadata, Text


def as_json(metadata: Metadata) -> dict[str, Any]:
    """Of all entries that say something."""
    return {name: _packed(name, value) for name, value in metadata.entries()}


def from_json(fields: Any) -> Metadata:
    """The same back.

    Raises:
        ValueError, TypeError, KeyError, AttributeError: it was not made by `as_json`.
    """
    if not isinstance(fields, dict):
        raise TypeError("metadata is no object")
    known = set(Metadata.__dataclass_fields__) - {"lost"}
    return Metadata(**{name: _unpacked(name, fields[name]) for name in fields if name in known})


def _packed(name: str, value: Any) -> Any:
    if name == "exif":
        return _text(value.tobytes())
    if name == "resolution":
        return [value.horizontal, value.vertical, value.unit]
    if name == "space":
        return {"scale": value.scale, "translation": value.translation, "unit": value.unit}
    if name == "geo":
        return [[tag.code, tag.kind, tag.items, _text(tag.data)] for tag in value]
    if name == "colour":
        return {chunk: _text(data) for chunk, data in value}
    if name == "texts":
        return [list(text) for text in value]
    return _text(value) if isinstance(value, bytes) else value


def _unpacked(name: str, value: Any) -> Any:
    if name == "exif":
        return Exif.parse(_bytes(value))
    if name == "resolution":
        horizontal, vertical, unit = value
        return resolution(horizontal, vertical, UNITS[UNITS.index(unit)])
    if name == "space":
        (down, across), (y, x) = value["scale"], value["translation"]
        return Space((float(down), float(across)), (float(y), float(x)), value["unit"])
    if name == "geo":
        return tuple(_tag(*entry) for entry in value)
    if name == "colour":
        return tuple((str(chunk), _bytes(data)) for chunk, data in value.items())
    if name == "levels":
        low, high = value
        return float(low), float(high)
    if name == "texts":
        return tuple(Text(*map(str, entry)) for entry in value)
    if name in ("icc", "xmp", "iptc"):
        return _bytes(value)
    if not isinstance(value, str):
        raise TypeError(f"{name} is no text")
    return value


def _tag(code: int, kind: int, count: int, text: str) -> Tag:
    data = _bytes(text)
    if not 0 <= code < 2**16 or len(data) != count * ITEM_BYTES[kind]:
        raise ValueError("a damaged tag")
    return Tag(code, kind, count, data)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _bytes(text: str) -> bytes:
    return base64.b64decode(text, validate=True)
