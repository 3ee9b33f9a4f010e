"""An output has one writer, is of one picture, and is complete when it is called so."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diinn_fast.errors import ImageError, UnfinishedError, UpscaleError
from diinn_fast.inference import Upscaler, rendering
from diinn_fast.inference.rendering import loop, writer
from diinn_fast.inference.rendering.lock import FileLock, is_locked
from diinn_fast.inference.rendering.partial import PartialOutput
from tests.helpers.plans import six_tiles
from tests.helpers.small_models import picture, small_model


@pytest.fixture(scope="module")
def upscaler() -> Upscaler:
    return Upscaler(small_model(), device="cpu")


@pytest.fixture
def tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every render in six tiles, each block recorded at once."""
    six_tiles(monkeypatch, (64, 64))
    monkeypatch.setattr(writer, "FLUSH_SECONDS", 0.0)


def render(upscaler: Upscaler, image: Any, out: Path, scale: float = 2, **how: Any) -> bool:
    return rendering.run(rendering.prepare(upscaler, image, out, scale=scale), **how)


def at_block(monkeypatch: pytest.MonkeyPatch, number: int, action: Callable[[], Any]) -> None:
    """Do something before the block of that number is made."""
    real = loop.render_block
    made = []

    def block(*arguments: Any) -> Any:
        made.append(arguments)
        if len(made) == number:
            action()
        return real(*arguments)

    monkeypatch.setattr(loop, "render_block", block)


# -- the lock --------------------------------------------------------------------------------------


def test_a_lock_is_held_once_and_ends(tmp_path: Path) -> None:
    first = FileLock(tmp_path / "lock-0")
    second = FileLock(tmp_path / "lock-0")
    assert first.acquire() and not second.acquire() and is_locked(tmp_path / "lock-0")
    first.release()
    assert second.acquire()
    second.remove()
    assert not (tmp_path / "lock-0").exists() and not is_locked(tmp_path / "lock-0")


WRITER = """
    import sys, time
    sys.path.insert(0, {root!r})
    from tests.helpers.small_models import small_model
    from diinn_fast.inference import Upscaler, rendering
    from diinn_fast.inference.rendering import loop
    def block(*arguments):
        print("writing", flush=True)
        time.sleep(100)
    loop.render_block = block
    upscaler = Upscaler(small_model(), device="cpu")
    rendering.run(rendering.prepare(upscaler, {picture!r}, {out!r}, scale=2))
"""


@pytest.mark.long
@pytest.mark.parametrize("name", ["out.zarr", "out.npy"])
def test_a_second_process_is_told_at_once_and_disturbs_nothing(
    upscaler: Upscaler, tmp_path: Path, name: str
) -> None:
    """Whatever it was asked for; when the first has been killed, the work goes on."""
    np.save(tmp_path / "in.npy", picture(50, 60))
    np.save(tmp_path / "other.npy", picture(50, 60, seed=1))
    out = tmp_path / name
    code = textwrap.dedent(WRITER).format(
        root=str(Path(__file__).parents[2]), picture=str(tmp_path / "in.npy"), out=str(out)
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "writing\n"
        before = sorted(Path(f"{out}.part").rglob("*"))
        for image in ("in.npy", "other.npy"):
            for how in ({}, {"resume": True}, {"overwrite": True}):
                with pytest.raises(UpscaleError, match="is being written by another process"):
                    render(upscaler, tmp_path / image, out, **how)
        assert sorted(Path(f"{out}.part").rglob("*")) == before
    finally:
        process.kill()
        process.communicate()
    assert render(upscaler, tmp_path / "in.npy", out, resume=True)
    assert not Path(f"{out}.part").exists()


def test_a_refused_render_leaves_no_folder(
    upscaler: Upscaler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(UpscaleError, match="of disk"):
        render(upscaler, picture(), tmp_path / "out.tif")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["out.png", "out.zarr"])
def test_an_output_that_is_a_link_is_made_where_it_leads(
    upscaler: Upscaler,
    tiles: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    """That may be another file system, into which no finished file can be renamed."""
    (tmp_path / "far").mkdir()
    real = tmp_path / "far" / "real.png"
    out = tmp_path / name
    out.symlink_to(real)
    seen: list[Path] = []
    at_block(monkeypatch, 4, lambda: seen.extend(tmp_path.rglob("*.part")))
    assert render(upscaler, picture(), out, overwrite=True)
    assert seen == [tmp_path / "far" / "real.png.part"]
    assert out.is_symlink() and os.listdir(tmp_path / "far") == ["real.png"]


# -- the picture -----------------------------------------------------------------------------------


def interrupt() -> None:
    raise KeyboardInterrupt


def test_a_restored_picture_is_the_same_and_resumes(
    upscaler: Upscaler, tiles: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bytes, of another time."""
    np.save(tmp_path / "in.npy", picture())
    out = tmp_path / "out.npy"
    with monkeypatch.context() as patch:
        at_block(patch, 4, interrupt)
        with pytest.raises(KeyboardInterrupt):
            render(upscaler, tmp_path / "in.npy", out)
    np.save(tmp_path / "in.npy", picture())
    os.utime(tmp_path / "in.npy", (1, 1))
    made = []
    real = loop.render_block
    monkeypatch.setattr(loop, "render_block", lambda *a: made.append(a) or real(*a))
    assert render(upscaler, tmp_path / "in.npy", out, resume=True)
    assert len(made) == 24 - 3, "three of 24 blocks were kept"
    np.testing.assert_array_equal(np.load(out), upscaler(picture(), scale=2))


@pytest.mark.parametrize("name", ["in.npy", "in.zarr"])
def test_a_picture_that_changes_meanwhile_is_noticed(
    upscaler: Upscaler, tiles: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A file rewritten in place, a chunk of a Zarr: nothing takes the output's name."""
    import zarr

    out = tmp_path / "out.npy"
    if name == "in.npy":
        np.save(tmp_path / name, picture())
        change = lambda: np.save(tmp_path / name, picture(seed=1))  # noqa: E731
    else:
        array = zarr.create_array(tmp_path / name, data=picture(), chunks=(30, 30, 3))
        change = lambda: array.__setitem__(slice(None), picture(seed=1))  # noqa: E731
    with monkeypatch.context() as patch:
        at_block(patch, 4, change)
        with pytest.raises(UnfinishedError, match=r"has changed while .* --overwrite"):
            render(upscaler, tmp_path / name, out)
    assert not out.exists()
    with pytest.raises(UpscaleError, match="of another job"):
        render(upscaler, tmp_path / name, out, resume=True)
    assert render(upscaler, tmp_path / name, out, overwrite=True)
    np.testing.assert_array_equal(np.load(out), upscaler(picture(seed=1), scale=2))


def test_a_finished_output_of_a_changed_zarr_is_not_called_complete(
    upscaler: Upscaler, tmp_path: Path
) -> None:
    import zarr

    array = zarr.create_array(tmp_path / "in.zarr", data=picture(40, 50), chunks=(30, 30, 3))
    assert render(upscaler, tmp_path / "in.zarr", tmp_path / "out.png")
    assert not render(upscaler, tmp_path / "in.zarr", tmp_path / "out.png", resume=True)
    array[:] = picture(40, 50, seed=1)
    with pytest.raises(ImageError, match="already exists"):
        render(upscaler, tmp_path / "in.zarr", tmp_path / "out.png", resume=True)


# -- the output ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["out.npy", "out.png", "out.zarr"])
@pytest.mark.parametrize("left", [0, 1])
def test_a_kill_in_the_last_step_resumes_to_done(
    upscaler: Upscaler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, left: int
) -> None:
    """While OUT.part is removed: the output has its name already."""
    out = tmp_path / name

    def remove(part: PartialOutput) -> None:
        for path in sorted(part.folder.iterdir())[:left]:
            if not path.name.startswith(("journal-", "lock-")):
                path.unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PartialOutput, "remove", remove)
        with pytest.raises(KeyboardInterrupt):
            render(upscaler, picture(40, 50), out)
    assert out.exists() and Path(f"{out}.part").exists()
    assert not render(upscaler, picture(40, 50), out, resume=True)
    assert out.exists() and not Path(f"{out}.part").exists()


@pytest.mark.parametrize("name", ["out.png", "out.tif"])
def test_a_damaged_output_is_not_called_complete(
    upscaler: Upscaler, tmp_path: Path, name: str
) -> None:
    out = tmp_path / name
    assert render(upscaler, picture(40, 50), out)
    assert not render(upscaler, picture(40, 50), out, resume=True)
    whole = out.read_bytes()
    out.write_bytes(whole[:-5000])
    with pytest.raises(ImageError, match="already exists"):
        render(upscaler, picture(40, 50), out, resume=True)
    assert render(upscaler, picture(40, 50), out, resume=True, overwrite=True)
    assert out.read_bytes() == whole
