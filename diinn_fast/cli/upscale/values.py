"""Parsers of option values: scales, sizes, sample ranges."""

from __future__ import annotations

import argparse
import re

from diinn_fast.inference.ranges import AUTO, DTYPE

PAIRS = ("--scale", "--size", "--range")
"""Options of one value that may also be two numbers."""

_PIXELS = re.compile(r"\s*(\d+)\s*[xX*\u00d7]\s*(\d+)\s*")


def join_pairs(arguments: list[str]) -> list[str]:
    """``--scale 2 3`` as one word, so that ``--scale 2 in.png`` leaves the picture alone."""
    joined = list(arguments)
    for n in range(len(joined) - 2):
        if joined[n] in PAIRS and _are_numbers(joined[n + 1 : n + 3]):
            joined[n + 1 : n + 3] = [f"{joined[n + 1]} {joined[n + 2]}"]
    return joined


def scale(text: str) -> float | tuple[float, ...]:
    """A factor, or two: vertical, horizontal."""
    if "," in text:
        raise argparse.ArgumentTypeError(
            f"{text!r} has a comma: write a factor with a point, such as 2.5, and two factors as "
            "--scale 2 3"
        )
    try:
        numbers = tuple(float(part) for part in text.split())
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not one or two numbers") from None
    return numbers[0] if len(numbers) == 1 else numbers


def size(text: str) -> tuple[int, int]:
    """(height, width) of ``WxH``, or of two numbers ``H W``."""
    if found := _PIXELS.fullmatch(text):
        return int(found[2]), int(found[1])
    try:
        height, width = (int(part) for part in text.split())
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no size: write width x height, such as 1920x1080, or two numbers, height "
            "and width; for one side use --width or --height"
        ) from None
    return height, width


def sample_range(text: str) -> str | tuple[float, ...]:
    """``auto``, ``dtype``, or two numbers."""
    if text in (AUTO, DTYPE):
        return text
    try:
        low, high = (float(part) for part in text.split())
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no sample range: write auto, dtype, or the lowest and the highest value, "
            "such as --range 0 4095"
        ) from None
    return low, high


def _are_numbers(words: list[str]) -> bool:
    try:
        return len([float(word) for word in words]) == 2
    except ValueError:
        return False
