"""Colour that a file tells without a profile, as an ICC profile: PNG's chunks, cameras' AdobeRGB.

Source: ICC.1:2001-04 (profiles of version 2); PNG specification, third edition, section 11.3.2;
ITU-T H.273 (code points of cICP); Adobe RGB (1998).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

import numpy as np

SRGB_PRIMARIES = (0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
"""White, red, green and blue, x and y of each, as cHRM orders them."""

ADOBE_PRIMARIES = (0.3127, 0.3290, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06)
ADOBE_GAMMA = 563 / 256

_D50 = np.array([0.9642, 1.0, 0.8249])
_BRADFORD = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)

_PRIMARIES = {
    1: SRGB_PRIMARIES,
    9: (0.3127, 0.3290, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046),
    12: (0.3127, 0.3290, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
}
"""By cICP's code point: BT.709, BT.2020, Display P3."""

_LINEAR = 8
_SRGB = 13
_TABLE = 1024

Curve = float | None
"""Exponent from samples to light; None: that of sRGB."""


def profile_of_chunks(chunks: Mapping[str, bytes], grey: bool) -> bytes | None:
    """An ICC profile that means what PNG's colour chunks do; None where there is no such profile
    (HDR), or nothing is said.
    """
    if "cICP" in chunks:
        return _of_code_points(chunks["cICP"], grey)
    if "sRGB" in chunks:
        return matrix_profile("sRGB", SRGB_PRIMARIES, None, grey)
    gamma: Curve = None
    if len(chunks.get("gAMA", b"")) == 4:
        stored = int.from_bytes(chunks["gAMA"], "big")
        # What encoders write for sRGB is meant as sRGB, and viewers take it so.
        gamma = None if stored in (0, 45454, 45455) else 100_000 / stored
    primaries: tuple[float, ...] = SRGB_PRIMARIES
    if len(chunks.get("cHRM", b"")) == 32:
        numbers = [n / 100_000 for n in struct.unpack(">8I", chunks["cHRM"])]
        primaries = tuple(numbers)
    return matrix_profile("PNG's gAMA and cHRM", primaries, gamma, grey)


def adobe_profile(grey: bool) -> bytes | None:
    """Of AdobeRGB, which cameras only name in EXIF."""
    return matrix_profile("compatible with Adobe RGB (1998)", ADOBE_PRIMARIES, ADOBE_GAMMA, grey)


def matrix_profile(
    name: str, primaries: tuple[float, ...], gamma: Curve, grey: bool
) -> bytes | None:
    """An ICC profile of version 2 of three primaries, or of grey; None if they span no colours."""
    white, matrix = _colorants(primaries)
    if matrix is None or (gamma is not None and not 0.1 < gamma < 20):
        return None
    curve = _curve(gamma)
    # What the specification requires of a display profile, and nothing more.
    tags = {
        b"desc": _description(name),
        b"cprt": b"text\0\0\0\0No copyright\0",
        b"wtpt": _xyz(white),
    }
    if grey:
        tags[b"kTRC"] = curve
    else:
        for number, letter in enumerate(b"rgb"):
            tags[bytes([letter]) + b"XYZ"] = _xyz(matrix[:, number])
        for letter in b"rgb":
            tags[bytes([letter]) + b"TRC"] = curve
    return _packed(tags, b"GRAY" if grey else b"RGB ")


def _of_code_points(data: bytes, grey: bool) -> bytes | None:
    if len(data) != 4 or data[0] not in _PRIMARIES or data[2] != 0 or data[3] != 1:
        return None
    curves: dict[int, Curve] = {_LINEAR: 1.0, _SRGB: None}
    if data[1] not in curves:
        return None
    return matrix_profile("PNG's cICP", _PRIMARIES[data[0]], curves[data[1]], grey)


def _colorants(primaries: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray | None]:
    """(XYZ of white, XYZ of the primaries as columns), adapted to D50 by Bradford's transform."""
    points = np.array(primaries, np.float64).reshape(4, 2)
    if not (np.isfinite(points).all() and (points[:, 1] > 0).all()):
        return _D50, None
    xyz = np.stack([points[:, 0], points[:, 1], 1 - points.sum(1)]) / points[:, 1]
    white = xyz[:, 0]
    if abs(np.linalg.det(xyz[:, 1:])) < 1e-6:
        return _D50, None
    matrix = xyz[:, 1:] * np.linalg.solve(xyz[:, 1:], white)
    cones = (_BRADFORD @ _D50) / (_BRADFORD @ white)
    adapt = np.linalg.inv(_BRADFORD) @ np.diag(cones) @ _BRADFORD
    return white, adapt @ matrix


def _curve(gamma: Curve) -> bytes:
    if gamma == 1.0:
        return b"curv\0\0\0\0" + struct.pack(">I", 0)
    if gamma is not None and abs(gamma * 256 - round(gamma * 256)) < 1e-6:
        return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))
    samples = np.linspace(0, 1, _TABLE)
    if gamma is None:
        low = samples / 12.92
        light = np.where(samples <= 0.04045, low, ((samples + 0.055) / 1.055) ** 2.4)
    else:
        light = samples**gamma
    values = np.round(light * 65535).astype(">u2")
    return b"curv\0\0\0\0" + struct.pack(">I", _TABLE) + values.tobytes()


def _description(name: str) -> bytes:
    text = name.encode("ascii") + b"\0"
    return b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + bytes(4 + 4 + 2 + 1 + 67)


def _xyz(values: np.ndarray) -> bytes:
    fixed = [round(float(value) * 65536) for value in values]
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *fixed)


def _packed(tags: dict[bytes, bytes], space: bytes) -> bytes:
    """Header, table of tags, and their data, of which equal ones are stored once."""
    at = 128 + 4 + 12 * len(tags)
    table = struct.pack(">I", len(tags))
    body = b""
    places: dict[bytes, int] = {}
    for signature, data in tags.items():
        if data not in places:
            places[data] = at + len(body)
            body += data + bytes(-len(data) % 4)
        table += signature + struct.pack(">II", places[data], len(data))
    white = struct.pack(">3i", *(round(float(value) * 65536) for value in _D50))
    head = struct.pack(">I4x4s4s4s4s", at + len(body), b"\x02\x10\0\0", b"mntr", space, b"XYZ ")
    # A fixed date, so that the same picture gives the same bytes every day.
    date = struct.pack(">6H", 2000, 1, 1, 0, 0, 0)
    header = head + date + b"acsp" + bytes(28) + white
    return header.ljust(128, b"\0") + table + body
