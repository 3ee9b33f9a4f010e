"""Sizes, pipes and unusual names on the command line."""

from __future__ import annotations

import io
import os
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from diinn_fast import Upscaler
from diinn_fast.cli import main
from diinn_fast.errors import UpscaleError
from diinn_fast.inference import target_size
from tests.helpers.commands import one_line, picture, size_of


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--size", "31x7"], (7, 31)),
        (["--size", "31X7"], (7, 31)),
        (["--size=31 x 7"], (7, 31)),
        (["--width", "20"], (15, 20)),
        (["--height", "15"], (15, 20)),
        (["--width", "7", "--height", "31"], (31, 7)),
    ],
)
def test_sizes(upscale: Any, folder: Path, options: list[str], expected: tuple[int, int]) -> None:
    assert upscale("in.png", "out.png", *options)[0] == 0
    assert size_of("out.png") == expected


def test_sizes_in_python() -> None:
    assert target_size((6, 8), width=20) == target_size((6, 8), height=15) == (15, 20)
    assert target_size((6, 8), width=5, height=9) == (9, 5)
    assert target_size((3000, 1), width=1) == (3000, 1)
    assert target_size((1, 3000), width=20) == (1, 20)
    with pytest.raises(UpscaleError, match="only one of"):
        target_size((6, 8), width=5, scale=2)
    with pytest.raises(UpscaleError, match=r"whole numbers of pixels, got 2\.5"):
        target_size((6, 8), width=2.5)


@pytest.mark.parametrize("options", [["--size", "16x18"], ["--width", "16", "--height", "18"]])
@pytest.mark.parametrize("bound", [[], ["--max-memory", "2GiB"]])
def test_another_aspect_is_warned_of(
    upscale: Any, folder: Path, options: list[str], bound: Any
) -> None:
    code, _, err = upscale("in.png", "out.png", *options, *bound)
    assert code == 0 and size_of("out.png") == (18, 16)
    one_line(err, "16x18", "8x6", "x2 across", "x3 down", "width or the height alone")


@pytest.mark.parametrize(
    "options",
    [["--size", "20x15"], ["--size", "21x16"], ["--width", "21"], ["--scale", "2", "3"]],
)
def test_rounding_and_two_factors_are_no_other_aspect(
    upscale: Any, folder: Path, options: list[str]
) -> None:
    assert upscale("in.png", "out.png", *options)[2] == ""


def test_another_aspect_is_warned_of_in_python(
    model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    samples = np.zeros((6, 8, 3), np.uint8)
    Upscaler(model, device="cpu")(samples, size=(18, 16))
    assert "another aspect" in caplog.text


# -- names -----------------------------------------------------------------------------------------


def test_names_that_begin_with_a_dash(
    folder: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from diinn_fast.cli import main

    picture(folder / "-in.png")
    options = ["--scale", "2", "--device", "cpu", "--weights", str(model)]
    assert main(["upscale", *options, "--", "-in.png", "-out.png"]) == 0
    assert size_of("-out.png") == (12, 16)
    assert main(["upscale", "in.png", *options, "--", "-out2.png"]) == 0
    assert size_of("-out2.png") == (12, 16)
    capsys.readouterr()
    assert main(["upscale", "--", "-in.png"]) == 2
    one_line(capsys.readouterr().err, "output")


# -- pipes -----------------------------------------------------------------------------------------


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put bytes on stdin."""

    def put(data: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))

    return put


@pytest.fixture
def piped(folder: Path, model: Path, capsysbinary: Any) -> Any:
    """Run the command: (exit code, bytes on stdout, stderr)."""
    from diinn_fast.cli import main

    def run(*arguments: str) -> tuple[int, bytes, str]:
        options = ["--scale", "2", "--device", "cpu", "--weights", str(model)]
        code = main(["upscale", *arguments, *options])
        out, err = capsysbinary.readouterr()
        return code, out, err.decode()

    return run


@pytest.mark.parametrize(
    ("options", "form"),
    [
        ([], "PNG"),
        (["--format", "jpg"], "JPEG"),
        (["--format", "tif"], "TIFF"),
        (["--format", "png", "--max-memory", "2GiB"], "PNG"),
    ],
)
def test_stdin_to_stdout(piped: Any, folder: Path, stdin: Any, options: Any, form: str) -> None:
    """The picture alone goes to stdout, what is said of it to stderr."""
    stdin(Path("in.png").read_bytes())
    code, out, err = piped("-", "-", *options)
    assert code == 0 and "- 8x6 -> - 16x12 (x2)" in err
    with PIL.Image.open(io.BytesIO(out)) as image:
        assert image.format == form and image.size == (16, 12)


def test_stdin_into_a_file_and_a_folder(piped: Any, folder: Path, stdin: Any) -> None:
    for out in ("out.png", "new/"):
        stdin(Path("in.png").read_bytes())
        assert piped("-", out)[0] == 0
    assert size_of("out.png") == size_of("new/stdin.png") == (12, 16)


@pytest.mark.skipif(os.name != "posix", reason="makes a named pipe")
def test_named_pipes_are_read_and_written(piped: Any, folder: Path) -> None:
    """As ``<(command)`` and ``>(command)`` of a shell are."""
    os.mkfifo("given")
    os.mkfifo("taken")
    data = Path("in.png").read_bytes()
    taken = []
    threads = [
        threading.Thread(target=lambda: Path("given").write_bytes(data)),
        threading.Thread(target=lambda: taken.append(Path("taken").read_bytes())),
    ]
    for thread in threads:
        thread.start()
    code, _, err = piped("given", "taken", "--format", "png", "--skip-existing")
    for thread in threads:
        thread.join(60)
    assert (code, err) == (0, "")
    assert PIL.Image.open(io.BytesIO(taken[0])).size == (16, 12)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-", "-", "--format", "zarr"], ["Zarr"]),
        (["-", "-", "--resume"], ["resumed"]),
        (["-", "in.png", "-"], ["folder"]),
    ],
)
def test_what_no_pipe_can_is_refused(
    piped: Any, folder: Path, stdin: Any, arguments: list[str], words: list[str]
) -> None:
    stdin(Path("in.png").read_bytes())
    code, out, err = piped(*arguments)
    assert (code, out) == (2, b"")
    one_line(err, *words)


def test_damage_on_stdin_is_one_sentence_and_no_output(
    piped: Any, folder: Path, stdin: Any
) -> None:
    stdin(Path("in.png").read_bytes()[:-40])
    code, out, err = piped("-", "-")
    assert (code, out) == (2, b"")
    one_line(err, "cut off")


# -- sample ranges ---------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [["auto"], ["1000", "1255"]])
@pytest.mark.parametrize("bound", [[], ["--max-memory", "2GiB"]])
def test_a_sample_range(upscale: Any, folder: Path, options: list[str], bound: Any) -> None:
    """The known model is nearest-neighbour interpolation, so samples come out as they went in."""
    samples = np.array(PIL.Image.open("in.png"))[..., 0].astype(np.uint16) % 256 + 1000
    PIL.Image.fromarray(samples).save("dark.png")
    code, _, err = upscale("dark.png", "out.png", "--scale", 2, *bound)
    assert code == 0 and "--range auto" in err
    code, _, err = upscale("--range", *options, "dark.png", "out2.png", "--scale", 2, *bound)
    assert (code, err) == (0, "")
    out = np.array(PIL.Image.open("out2.png"))
    np.testing.assert_array_equal(out, samples.repeat(2, 0).repeat(2, 1))


@pytest.mark.parametrize("words", [["wide"], ["5", "1"], ["0", "70000"], ["-1", "255"]])
def test_sample_ranges_that_cannot_be(upscale: Any, folder: Path, words: list[str]) -> None:
    code, _, err = upscale("in.png", "out.png", "--range", *words)
    assert code == 2 and not Path("out.png").exists()
    one_line(err, "range")


# -- without loss ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "options", "exact"),
    [
        ("in.png", [], False),
        ("in.png", ["--lossless"], True),
        ("lossless.webp", [], True),
        ("lossless.webp", ["--metadata", "none"], True),
        ("lossy.webp", [], False),
        ("lossy.webp", ["--lossless"], True),
    ],
)
def test_webp_without_loss(
    upscale: Any, folder: Path, given: str, options: Any, exact: bool
) -> None:
    """If asked for, and of a picture that has none."""
    image = PIL.Image.open("in.png")
    exif = PIL.Image.Exif()
    exif[271] = "maker"  # so that the file has an extended header
    image.save("lossless.webp", lossless=True, exif=exif)
    image.save("lossy.webp", quality=80, exif=exif)
    assert upscale(given, "out.webp", "--scale", 2, *options)[0] == 0
    samples = np.array(PIL.Image.open(given).convert("RGB")).repeat(2, 0).repeat(2, 1)
    out = np.array(PIL.Image.open("out.webp").convert("RGB"))
    assert (out == samples).all() == exact


def test_jpeg_without_loss_is_refused_before_the_work(
    upscale: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Upscaler, "__call__", lambda *_, **__: pytest.fail("worked first"))
    code, _, err = upscale("in.png", "out.jpg", "--lossless")
    assert code == 2 and not Path("out.jpg").exists()
    one_line(err, "JPEG", "without loss", "WebP")


@pytest.mark.parametrize("words", [["", "out"], ["in.png", ""], ["--", "in.png", ""]])
def test_an_empty_name_is_not_the_current_folder(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    assert main(["upscale", *words]) == 2
    one_line(capsys.readouterr().err, "name is empty")


@pytest.mark.parametrize("options", [[], ["--max-memory", "4GiB"]], ids=["memory", "pieces"])
def test_a_name_may_be_as_long_as_the_file_system_takes(
    upscale: Any, folder: Path, options: list[str]
) -> None:
    longest = "n" * 251 + ".png"
    assert upscale("in.png", longest, "--scale", 2, *options)[0] == 0
    assert {path.name for path in folder.iterdir()} == {"in.png", longest}
    for names in (["in.png", "n" * 252 + ".png"], ["n" * 300 + ".png", "out.png"]):
        code, _, err = upscale(*names, "--scale", 2, *options)
        assert code == 2
        one_line(err, "File name too long")
