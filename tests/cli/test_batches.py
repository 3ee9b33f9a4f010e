"""Batches of ``diinn-fast upscale``: every file that was pointed at is done, skipped for a stated
reason, or failed.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from diinn_fast.cli.upscale import batch, report
from diinn_fast.errors import UnfinishedError
from diinn_fast.inference import Upscaler
from tests.helpers.commands import picture, size_of


@pytest.fixture
def tree(folder: Path) -> Path:
    """``scans`` with pictures at three levels."""
    for name in ("a.png", "sub/a.png", "sub/deep/b.tif", ".git/c.png"):
        path = folder / "scans" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(path)
    return folder / "scans"


def made(out: str) -> list[str]:
    return sorted(p.relative_to(out).as_posix() for p in Path(out).rglob("*") if p.is_file())


def last(text: str) -> str:
    return text.splitlines()[-1]


# -- which files -----------------------------------------------------------------------------------


def test_folders_in_folders_are_named_as_skipped(upscale: Any, tree: Path) -> None:
    code, out, err = upscale("scans", "out", "--scale", 2)
    assert (code, err) == (0, "") and made("out") == ["a.png"]
    assert last(out) == (
        "1 done, 2 skipped (1 hidden; 1 a folder, which --recursive looks into: scans/sub), "
        "0 failed"
    )


def test_recursive_mirrors_the_tree(upscale: Any, tree: Path) -> None:
    code, out, err = upscale("scans", "out", "--scale", 2, "--recursive")
    assert (code, err) == (0, "") and made("out") == ["a.png", "sub/a.png", "sub/deep/b.tif"]
    assert last(out) == "3 done, 1 skipped (1 hidden), 0 failed"


def test_recursive_passes_over_its_own_output_and_links_back(upscale: Any, tree: Path) -> None:
    (tree / "sub" / "back").symlink_to(tree)
    assert upscale("scans", "scans/out", "--scale", 2, "--recursive")[0] == 0
    first = made("scans/out")
    assert first == ["a.png", "sub/a.png", "sub/deep/b.tif"]
    code, out, _ = upscale("scans", "scans/out", "--scale", 2, "--recursive", "--skip-existing")
    assert code == 0 and made("scans/out") == first
    assert "1 a link back to a folder around it: scans/sub/back" in last(out)
    assert "3 exists already" in last(out)


def test_a_tree_without_pictures_at_its_top_says_how_to_look_deeper(
    upscale: Any, folder: Path
) -> None:
    (folder / "scans" / "sub").mkdir(parents=True)
    picture(folder / "scans" / "sub" / "a.png")
    code, _, err = upscale("scans", "out")
    assert code == 2 and "--recursive" in err
    assert upscale("scans", "out", "--recursive", "--scale", 2)[0] == 0


def test_what_the_system_does_not_show_is_named_and_skipped(
    upscale: Any, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder without the right to list it or to look at what is in it."""
    real_stat = os.stat
    real_list = os.listdir

    def stat(path: Any, *given: Any, **options: Any) -> Any:
        if isinstance(path, (str, os.PathLike)) and Path(path).parent.name == "locked":
            raise PermissionError(13, "Permission denied")
        return real_stat(path, *given, **options)

    def listdir(path: Any = ".") -> list[str]:
        if Path(path).name == "locked" and Path(path).parent.name == "closed":
            raise PermissionError(13, "Permission denied")
        return real_list(path)

    for folder in (tree / "locked", tree / "closed" / "locked"):
        folder.mkdir(parents=True)
        picture(folder / "z.png")
    monkeypatch.setattr(os, "stat", stat)
    monkeypatch.setattr(os, "listdir", listdir)
    code, out, err = upscale(tree, "out", "--scale", 2, "--recursive")
    assert (code, err) == (0, "")
    assert "1 cannot be looked at (Permission denied): " in out
    assert "1 a folder that cannot be read: Permission denied: " in out


@pytest.mark.parametrize("inputs", [["scans"], ["scans/a.png", "scans/link.png"]])
def test_each_link_has_its_own_output(upscale: Any, folder: Path, inputs: list[str]) -> None:
    """As the held frames of a video; a link that leads nowhere is named."""
    (folder / "scans").mkdir()
    picture(folder / "scans" / "a.png")
    (folder / "scans" / "link.png").symlink_to("a.png")
    (folder / "scans" / "dangling.png").symlink_to("gone.png")
    code, out, _ = upscale(*inputs, "out", "--scale", 2)
    assert code == 0 and made("out") == ["a.png", "link.png"]
    assert ("1 a broken link: scans/dangling.png" in last(out)) == (inputs == ["scans"])


def test_hidden_files_are_left_out_unless_named(upscale: Any, folder: Path) -> None:
    (folder / "scans").mkdir()
    for name in ("a.png", ".hidden.png"):
        picture(folder / "scans" / name)
    (folder / "scans" / "._a.png").write_bytes(b"\0\5\26\7")  # as macOS leaves them
    code, out, err = upscale("scans", "out", "--scale", 2)
    assert (code, err) == (0, "") and made("out") == ["a.png"] and "2 hidden" in last(out)
    assert upscale("scans/.hidden.png", "in.png", "named", "--scale", 2)[0] == 0
    assert made("named") == [".hidden.png", "in.png"]


def test_a_zarr_in_a_folder_is_a_picture(upscale: Any, folder: Path) -> None:
    import zarr

    (folder / "scans").mkdir()
    zarr.create_array(folder / "scans" / "a.zarr", data=picture(folder / "in.png"))
    code, out, err = upscale("scans", "out", "--scale", 2)
    assert (code, err) == (0, "") and last(out) == "1 done, 0 failed"
    assert zarr.open_array("out/a.zarr").shape == (12, 16, 3)


# -- names -----------------------------------------------------------------------------------------


def test_a_format_for_all_outputs(upscale: Any, folder: Path) -> None:
    (folder / "scans").mkdir()
    for name in ("a.png", "b.JPG", "c.tif"):
        picture(folder / "scans" / name)
    assert upscale("scans", "out", "--scale", 2, "--format", ".webp")[0] == 0
    assert made("out") == ["a.webp", "b.webp", "c.webp"]
    assert upscale("in.png", "out/", "--scale", 2, "--format", "npy")[0] == 0
    assert np.load("out/in.npy").shape == (12, 16, 3)


def test_names_that_would_collide_keep_their_endings_and_that_is_said(
    upscale: Any, folder: Path
) -> None:
    (folder / "scans").mkdir()
    for name in ("a.png", "a.tif", "b.png"):
        picture(folder / "scans" / name)
    code, _, err = upscale("scans", "out", "--scale", 2, "--format", "jpg")
    assert code == 0 and made("out") == ["a.png.jpg", "a.tif.jpg", "b.jpg"]
    assert err.count("is not the only one for a.jpg") == 2


def test_equal_names_from_two_folders_are_refused(upscale: Any, tree: Path) -> None:
    code, _, err = upscale("scans/a.png", "scans/sub/a.png", "out", "--format", "png")
    assert code == 2 and "both" in err and not Path("out").exists()


# -- what is there already -------------------------------------------------------------------------


def test_existing_outputs_are_skipped_and_counted(upscale: Any, folder: Path) -> None:
    (folder / "scans").mkdir()
    for name in ("a.png", "b.jpg"):
        picture(folder / "scans" / name)
    Path("out").mkdir()
    Path("out/a.png").write_bytes(b"precious")
    code, out, err = upscale("scans", "out", "--scale", 2, "--skip-existing")
    assert (code, err) == (0, "") and Path("out/a.png").read_bytes() == b"precious"
    assert last(out) == "1 done, 1 skipped (1 exists already: out/a.png), 0 failed"
    assert upscale("scans", "out", "--scale", 2, "--skip-existing", "-q") == (0, "", "")


def test_one_existing_output_is_skipped(upscale: Any, folder: Path) -> None:
    Path("out.png").write_bytes(b"precious")
    code, out, err = upscale("in.png", "out.png", "--skip-existing")
    assert (code, out, err) == (0, "out.png exists already: skipped\n", "")
    assert Path("out.png").read_bytes() == b"precious"


def test_what_another_process_makes_meanwhile_is_skipped(
    upscale: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Upscaler.__call__

    def slow(self: Any, *given: Any, **options: Any) -> Any:
        Path("out").joinpath("in.png").write_bytes(b"of the other")
        return real(self, *given, **options)

    monkeypatch.setattr(Upscaler, "__call__", slow)
    picture(folder / "b.png")
    code, out, err = upscale("in.png", "b.png", "out", "--scale", 2, "--skip-existing")
    assert (code, err) == (0, "") and "1 exists already: out/in.png" in last(out)
    assert Path("out/in.png").read_bytes() == b"of the other"


def test_a_finished_job_is_counted_as_complete(upscale: Any, folder: Path) -> None:
    picture(folder / "b.png")
    arguments = ("in.png", "b.png", "out", "--scale", 2, "--resume")
    assert last(upscale(*arguments)[1]) == "2 done, 0 failed"
    code, out, _ = upscale(*arguments)
    assert code == 0 and last(out).startswith("0 done, 2 skipped (2 complete already: out/in.png")


def test_resuming_a_folder_of_jpegs_names_what_does_it(upscale: Any, folder: Path) -> None:
    code, _, err = upscale("in.png", "out.jpg", "--resume")
    assert code == 2 and "--skip-existing" in err


# -- failures --------------------------------------------------------------------------------------


def test_a_failure_names_its_file_and_the_exit_code_is_one(
    upscale: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Upscaler.__call__
    calls = []

    def fails_once(self: Any, *given: Any, **options: Any) -> Any:
        calls.append(given)
        if len(calls) == 1:
            raise FloatingPointError("the network gave NaN")
        return real(self, *given, **options)

    monkeypatch.setattr(Upscaler, "__call__", fails_once)
    picture(folder / "b.png")
    code, out, err = upscale("in.png", "b.png", "out", "--scale", 2, "-q")
    assert (code, out) == (1, "") and made("out") == ["b.png"]
    assert err.splitlines() == [
        "diinn-fast: in.png: the network gave NaN",
        "diinn-fast: 1 done, 1 failed",
    ]


def test_an_interrupt_sums_up(upscale: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = batch.upscale_job
    calls = []

    def interrupted(*given: Any) -> Any:
        calls.append(given)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(batch, "upscale_job", interrupted)
    for name in ("b.png", "c.png"):
        picture(folder / name)
    code, _, err = upscale("in.png", "b.png", "c.png", "out", "--scale", 2)
    assert code == 130 and "diinn-fast: 1 done, 0 failed, 1 not begun" in err.splitlines()


# -- progress --------------------------------------------------------------------------------------


def test_lines_of_progress_where_there_is_no_terminal(
    upscale: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which picture of how many, how far it is, time left; none with -q."""
    monkeypatch.setattr(report, "PROGRESS_SECONDS", 0.0)
    monkeypatch.setattr("diinn_fast.inference.upscaler.STRIP_PIXELS", 64)
    picture(folder / "b.png")
    code, _, err = upscale("in.png", "b.png", "out", "--scale", 2)
    assert code == 0
    lines = [line for line in err.splitlines() if "picture 2 of 2, b.png: " in line]
    assert lines and " %, about " in lines[0] and lines[0].endswith(" left")
    assert upscale("in.png", "b.png", "out", "--scale", 2, "--overwrite", "-q")[2] == ""


def test_lines_of_progress_of_a_picture_in_pieces(
    upscale: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "PROGRESS_SECONDS", 0.0)
    samples = np.zeros((60, 80, 3), np.uint8)
    PIL.Image.fromarray(samples).save("large.png")
    monkeypatch.setattr("diinn_fast.inference.plan.BLOCK_PIXELS", 1 << 12)
    code, _, err = upscale("large.png", "out.tif", "--scale", 2, "--max-memory", "2GiB")
    assert code == 0 and size_of("out.tif") == (120, 160)
    assert any("large.png: " in line and " %" in line for line in err.splitlines()), err


# -- readers that go away --------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.skipif(os.name != "posix", reason="closes descriptors as shells do")
@pytest.mark.parametrize("streams", ["| true", "2>&1 | true", ">&- 2>&-", ">/dev/full 2>&1"])
def test_a_closed_pipe_does_not_stop_the_work(folder: Path, model: Path, streams: str) -> None:
    """Neither the first picture nor the second."""
    import subprocess
    import sys

    picture(folder / "b.png")
    command = (
        f"{sys.executable} -m diinn_fast upscale in.png b.png out --scale 2 --device cpu "
        f"--weights {model} {streams}; test ${{PIPESTATUS[0]}} = 0"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    run = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, timeout=120
    )
    assert (run.returncode, run.stderr) == (0, b"")
    assert size_of("out/in.png") == size_of("out/b.png") == (12, 16)


def test_an_unfinished_output_is_a_failure(
    upscale: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise UnfinishedError("the disk is full")

    monkeypatch.setattr(batch, "upscale_job", full)
    picture(folder / "b.png")
    code, _, err = upscale("in.png", "b.png", "out")
    assert code == 1 and last(err) == "diinn-fast: 0 done, 2 failed"
