"""What ``diinn-fast upscale`` says of pictures for which the model `photo` is the better one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from diinn_fast.cli.upscale.advice import COMPRESSED
from diinn_fast.model import DEFAULT_WEIGHTS
from tests.helpers.commands import one_line, picture

Upscale = Callable[..., tuple[int, str, str]]


@pytest.fixture
def jpegs(folder: Path) -> Path:
    (folder / "in.png").unlink()
    for name in ("a.jpg", "b.jpg"):
        picture(folder / name, quality=COMPRESSED - 30)
    return folder


def test_a_compressed_jpeg_is_said_to_want_the_other_model(upscale: Upscale, jpegs: Path) -> None:
    code, _, err = upscale("a.jpg", "out.png", "--scale", 2, weights=DEFAULT_WEIGHTS)
    assert code == 0
    one_line(err, "a.jpg", f"quality {COMPRESSED - 30}", "--weights photo")


def test_it_is_said_once_of_a_folder(upscale: Upscale, jpegs: Path) -> None:
    code, _, err = upscale(".", "out", "--scale", 2, weights=DEFAULT_WEIGHTS)
    assert code == 0
    one_line(err, "a.jpg", "--weights photo")


@pytest.mark.parametrize("weights", ["photo", None])
def test_it_is_not_said_where_a_model_was_chosen(
    upscale: Upscale, jpegs: Path, model: Path, weights: str | None
) -> None:
    code, _, err = upscale("a.jpg", "out.png", "--scale", 2, weights=weights or model)
    assert (code, err) == (0, "")


def test_it_is_not_said_of_fine_pictures_nor_to_who_wants_quiet(
    upscale: Upscale, jpegs: Path
) -> None:
    picture(jpegs / "fine.jpg", quality=COMPRESSED + 5)
    picture(jpegs / "in.png")
    for name in ("fine.jpg", "in.png"):
        assert upscale(name, f"{name}.png", "--scale", 2, weights=DEFAULT_WEIGHTS)[2] == ""
    assert upscale("a.jpg", "q.png", "--scale", 2, "-q", weights=DEFAULT_WEIGHTS)[2] == ""
