"""``diinn-fast upscale`` of outputs in pieces: plans shown, bounds, resuming, refusals,
interrupts.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from diinn_fast.cli import main
from diinn_fast.inference import Upscaler
from diinn_fast.inference.plan import Plan, Task
from diinn_fast.inference.rendering import execute, loop, planning, writer
from tests.helpers.known_models import random_model, save

HEIGHT = 40
WIDTH = 60


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(random_model(), tmp_path_factory.mktemp("weights") / "random")


@pytest.fixture(scope="session")
def whole(model: Path) -> np.ndarray:
    """The picture at scale 2, made in memory."""
    result: np.ndarray = Upscaler(model, device="cpu")(samples(), scale=2)
    return result


def samples(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with one picture in it."""
    monkeypatch.chdir(tmp_path)
    PIL.Image.fromarray(samples()).save("in.png")
    return tmp_path


@pytest.fixture
def upscale(
    folder: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run ``diinn-fast upscale --scale 2`` (unless told) on the CPU: (exit code, stdout,
    stderr).
    """

    def run(*arguments: object) -> tuple[int, str, str]:
        words = [str(a) for a in arguments]
        size = [] if {"--scale", "--size"} & set(words) else ["--scale", "2"]
        code = main(["upscale", *words, *size, "--device", "cpu", "--weights", str(model)])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut every output in 2 x 3 tiles, whatever the memory; each has one block."""

    def made(task: Task, base: int, bound: int) -> Plan:
        return Plan(task.lr, task.hr, task.unit, task.radius or 0, (2, 3), (64, 64), 16, 1 << 16, 0)

    monkeypatch.setattr(planning, "plan_within", made)


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def pixels(path: str) -> np.ndarray:
    return np.load(path) if path.endswith(".npy") else np.asarray(PIL.Image.open(path))


# -- dry runs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("out", ["out.png", "out.tif", "out.npy", "out.zarr", "out.ome.zarr"])
def test_a_dry_run_prints_the_plan_and_writes_nothing(
    upscale: Callable[..., tuple[int, str, str]], folder: Path, out: str
) -> None:
    code, said, err = upscale("in.png", out, "--dry-run")
    assert (code, err) == (0, "")
    first, *lines = said.splitlines()
    assert first == f"60x40 -> {out} 120x80, 3 channels of uint8"
    facts = dict(line.split(maxsplit=1) for line in lines)
    assert list(facts) == ["tiles", "halo", "memory", "disk", "time"]
    assert facts["tiles"] == "1 (1 down, 1 across) of about 120x80 pixels, in 1 blocks"
    assert facts["halo"] == "34 LR pixels (exact), 0 % more to encode"
    for name in ("memory", "disk"):
        assert re.match(r"\d+(\.\d+)? (B|KiB|MiB|GiB) at most", facts[name])
    assert re.fullmatch(r"about \d+ s", facts["time"])
    assert names(folder) == ["in.png"]


def test_a_dry_run_prints_the_plan_even_if_quiet(
    upscale: Callable[..., tuple[int, str, str]], folder: Path
) -> None:
    code, said, err = upscale("in.png", "out.tif", "--dry-run", "-q")
    assert (
        (code, err) == (0, "")
        and said.startswith("60x40 -> out.tif 120x80")
        and "\nmemory " in said
    )


def test_a_dry_run_of_several_pictures_makes_no_folder(
    upscale: Callable[..., tuple[int, str, str]], folder: Path
) -> None:
    PIL.Image.fromarray(samples(1)).save("other.tif")
    code, said, _ = upscale("in.png", "other.tif", "large", "--dry-run")
    assert code == 0 and said.count("tiles ") == 2
    assert names(folder) == ["in.png", "other.tif"]


def test_a_dry_run_shows_cuts_and_approximations(
    upscale: Callable[..., tuple[int, str, str]], folder: Path, tiles: None
) -> None:
    said = upscale("in.png", "out.tif", "--dry-run", "--halo", 3)[1]
    assert "6 (2 down, 3 across) of about 40x40 pixels, in 6 blocks" in said
    assert re.search(r"3 LR pixels \(an approximation\), [1-9]\d* % more to encode", said)


def test_a_dry_run_refuses_what_the_run_would(
    upscale: Callable[..., tuple[int, str, str]], folder: Path
) -> None:
    assert upscale("in.png", "out.tif", "--dry-run", "--max-memory", "1MiB")[0] == 2


# -- bounds ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", ["much", "-1GiB", "1PiB", ""])
def test_sizes_that_are_none_are_refused(
    upscale: Callable[..., tuple[int, str, str]], folder: Path, size: str
) -> None:
    code, out, err = upscale("in.png", "out.png", f"--max-memory={size}")
    assert (code, out) == (2, "") and "write it as 600MiB or 1.5GiB" in err and err.count("\n") == 1


@pytest.mark.long
@pytest.mark.parametrize("size", ["2GiB", "2.5g", "3000MiB", str(3 << 30)])
def test_outputs_within_a_bound_are_those_of_the_whole(
    upscale: Callable[..., tuple[int, str, str]], folder: Path, whole: np.ndarray, size: str
) -> None:
    code, out, err = upscale("in.png", "out.png", "--max-memory", size)
    assert (code, err) == (0, "")
    assert re.fullmatch(
        r"in\.png 60x40 -> out\.png 120x80 \(x2\) in \d+\.\d s, precision \w+, backend \w+\n", out
    ), out
    np.testing.assert_array_equal(pixels("out.png"), whole)
    assert names(folder) == ["in.png", "out.png"]


FRESH = """
import sys
from pathlib import Path
from diinn_fast.cli import main
code = main(sys.argv[1:])
status = Path("/proc/self/status")
lines = status.read_text().splitlines() if status.exists() else ["VmHWM: 0 kB"]
print("peak", *(line.split()[1] for line in lines if line.startswith("VmHWM:")))
sys.exit(code)
"""


@pytest.mark.long
@pytest.mark.parametrize("out", ["out.png"])
def test_too_small_a_bound_names_the_smallest_and_that_works(
    folder: Path, model: Path, out: str
) -> None:
    """In fresh processes, which hold nothing else; their peaks stay within it."""

    def run(bound: str) -> subprocess.CompletedProcess[str]:
        arguments = [
            "upscale",
            "in.png",
            out,
            "--scale",
            "2",
            "--weights",
            str(model),
            "--device",
            "cpu",
        ]
        return subprocess.run(
            [sys.executable, "-c", FRESH, *arguments, "--max-memory", bound],
            capture_output=True, text=True, timeout=120, check=False,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )  # fmt: skip

    refused = run("300KiB")
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1, refused.stderr
    found = re.search(
        r"within 300 KiB .* smallest bound that works is (\d+) MiB \(--max-memory (.*)\)",
        refused.stderr,
    )
    assert found is not None and found[2] == f"{found[1]}MiB", refused.stderr
    assert names(folder) == ["in.png"]
    done = run(found[2])
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout.split("peak ")[1]) <= int(found[1]) * 1024
    assert names(folder) == ["in.png", out]


@pytest.mark.parametrize(
    "option", [["--max-memory", "2GiB"], ["--resume"], ["--dry-run"], ["--halo", "0"]]
)
@pytest.mark.parametrize("out", ["out.jpg", "out.webp"])
def test_formats_that_are_not_written_in_pieces_are_refused(
    upscale: Callable[..., tuple[int, str, str]], folder: Path, out: str, option: list[str]
) -> None:
    code, said, err = upscale("in.png", out, *option)
    assert (code, said) == (2, "")
    suffix = Path(out).suffix
    advice = "; --skip-existing passes over what is done" if option == ["--resume"] else ""
    assert (
        err
        == f"diinn-fast: {suffix} is not written piece by piece: write .png or .tif, or leave out "
        f"{option[0]}{advice}\n"
    )
    assert names(folder) == ["in.png"]


def test_a_self_ensemble_is_refused(
    upscale: Callable[..., tuple[int, str, str]], folder: Path
) -> None:
    code, _, err = upscale("in.png", "out.png", "--max-memory", "2GiB", "--self-ensemble")
    assert (
        code == 2 and "self-ensemble needs the whole picture" in err and names(folder) == ["in.png"]
    )


# -- halos, formats --------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("halo", [0, 4])
def test_a_smaller_halo_says_how_far_it_is_off(
    upscale: Callable[..., tuple[int, str, str]],
    folder: Path,
    tiles: None,
    whole: np.ndarray,
    halo: int,
) -> None:
    code, _, err = upscale("in.png", "out.png", "--halo", halo)
    assert code == 0
    found = re.fullmatch(
        rf"diinn-fast: a halo of {halo} LR pixels is an approximation: off by up to (\S+) of 1\n", err  # noqa: E501
    )  # fmt: skip
    assert found is not None and 0 < float(found[1]) < 1, err
    assert (pixels("out.png") != whole).any()


@pytest.mark.long
def test_all_of_the_halo_is_no_approximation(
    upscale: Callable[..., tuple[int, str, str]], folder: Path, tiles: None, whole: np.ndarray
) -> None:
    assert upscale("in.png", "out.png", "--halo", 99)[::2] == (0, "")
    np.testing.assert_array_equal(pixels("out.png"), whole)


@pytest.mark.parametrize("halo", ["-1", "far", "1.5"])
def test_halos_that_are_none_are_refused(
    upscale: Callable[..., tuple[int, str, str]], folder: Path, halo: str
) -> None:
    code, out, err = upscale("in.png", "out.png", f"--halo={halo}")
    assert (code, out) == (2, "") and "halo" in err and err.count("\n") == 1


@pytest.mark.long
def test_pyramid_and_no_compression(
    upscale: Callable[..., tuple[int, str, str]], folder: Path
) -> None:
    import tifffile

    sizes = {}
    for name, options in {"a": [], "b": ["--no-compression"], "c": ["--pyramid"]}.items():
        assert (
            upscale("in.png", f"{name}.tif", "--size", 300, 520, "--max-memory", "2GiB", *options)[
                0
            ]
            == 0
        )
        with tifffile.TiffFile(f"{name}.tif") as file:
            sizes[name] = (
                [level.shape for level in file.series[0].levels],
                file.pages[0].compression.name,
            )
    assert sizes["a"][0] == sizes["b"][0] == [(300, 520, 3)]
    assert sizes["a"][1] != "NONE" and sizes["b"][1] == "NONE"
    assert sizes["c"][0][:2] == [(300, 520, 3), (150, 260, 3)]
    np.testing.assert_array_equal(tifffile.imread("a.tif"), tifffile.imread("b.tif"))


@pytest.mark.long
@pytest.mark.parametrize("slash", ["", "/"])
def test_a_zarr_is_a_picture_and_no_folder(
    upscale: Callable[..., tuple[int, str, str]], folder: Path, slash: str
) -> None:
    assert upscale("in.png", f"a.zarr{slash}", "--scale", 1)[0] == 0
    assert upscale(f"a.zarr{slash}", "b.npy", "--scale", 1)[0] == 0 and pixels("b.npy").shape == (
        40,
        60,
        3,
    )
    before = sorted(folder.rglob("*"))
    code, _, err = upscale("in.png", f"a.zarr{slash}", "--scale", 1)
    assert code == 2 and "a.zarr already exists" in err
    code, _, err = upscale("in.png", "b.npy", f"a.zarr{slash}")
    assert code == 2 and "must be a folder" in err
    assert sorted(folder.rglob("*")) == before


def test_bands_of_a_satellite(upscale: Callable[..., tuple[int, str, str]], folder: Path) -> None:
    """Refused by their number, and made if they are asked for."""
    import tifffile

    samples = np.random.default_rng(0).integers(0, 256, (6, 8, 4)).astype(np.uint8)
    tifffile.imwrite("map.tif", samples, photometric="rgb", extrasamples=[0])
    code, _, err = upscale("map.tif", "out.tif", "--scale", 2)
    assert code == 2 and "has 4 channels" in err and "--bands each" in err
    assert upscale("map.tif", "out.tif", "--scale", 2, "--bands", "each")[0] == 0
    assert tifffile.imread("out.tif").shape == (12, 16, 4)
    code, _, err = upscale("map.tif", "out.jpg", "--bands", "each")
    assert code == 2 and "leave out --bands" in err


# -- resuming --------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("out", ["out.png", "out.tif", "out.npy", "out.zarr", "out.ome.zarr"])
def test_a_finished_output_is_resumed_by_doing_nothing(
    upscale: Callable[..., tuple[int, str, str]],
    folder: Path,
    out: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert upscale("in.png", out, "--resume")[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr(execute, "render_tiles", lambda *_, **__: pytest.fail("it is there already"))
        assert upscale("in.png", out, "--resume") == (0, f"{out} is complete already\n", "")
        assert upscale("in.png", out, "--resume", "--max-memory", "2GiB")[0] == 0
        for other in (["--scale", 3], ["--halo", 2], ["--precision", "bf16"]):
            code, said, err = upscale("in.png", out, "--resume", *other)
            assert (
                (code, said) == (2, "") and f"{out} already exists" in err and "--overwrite" in err
            )
    assert upscale("in.png", out, "--resume", "--scale", 3, "--overwrite")[0] == 0
    assert upscale("in.png", out, "--resume", "--scale", 3)[1] == f"{out} is complete already\n"
    assert names(folder) == sorted(["in.png", out])


def test_another_picture_of_the_same_name_is_another_job(
    upscale: Callable[..., tuple[int, str, str]], folder: Path
) -> None:
    assert upscale("in.png", "out.png", "--resume")[0] == 0
    PIL.Image.fromarray(samples(1)).save("in.png")
    assert upscale("in.png", "out.png", "--resume")[0] == 2


@pytest.mark.long
@pytest.mark.skipif(os.name != "posix", reason="sends signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("out", ["out.png", "out.npy"])
def test_the_hint_after_an_interrupt_works(
    upscale: Callable[..., tuple[int, str, str]],
    folder: Path,
    tiles: None,
    whole: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    out: str,
) -> None:
    """A real signal while the fourth block of six is made."""
    monkeypatch.setattr(writer, "FLUSH_SECONDS", 0.0)
    real = loop.render_block
    made = []

    def block(*arguments: Any) -> Any:
        made.append(arguments[-1])
        if len(made) == 4:
            signal.raise_signal(number)
        return real(*arguments)

    # Ignored where tests run in the background.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(loop, "render_block", block)
            code, said, err = upscale("in.png", out, "--resume")
    finally:
        signal.signal(signal.SIGINT, before)
    assert (code, said) == (130, "")
    assert (
        err
        == f"diinn-fast: interrupted, {out}.part keeps what is done: run it again with --resume\n"
    )
    assert names(folder) == sorted(["in.png", f"{out}.part"])
    code, _, err = upscale("in.png", out)
    assert code == 2 and "--resume" in err and "--overwrite" in err, "nothing is lost unasked"
    code, _, err = upscale("in.png", out, "--resume", "--scale", 3)
    assert code == 2 and "is of another job" in err
    with monkeypatch.context() as patch:
        patch.setattr(loop, "render_block", lambda *a: made.append(a[-1]) or real(*a))
        assert upscale("in.png", out, "--resume")[::2] == (0, "")
    assert len(made) == 4 + 3, "three of six blocks were kept"
    np.testing.assert_array_equal(pixels(out), whole)
    assert names(folder) == sorted(["in.png", out])


# -- full disks ------------------------------------------------------------------------------------


def full_after(
    monkeypatch: pytest.MonkeyPatch, function: str, calls: int, holding: bytes = b""
) -> None:
    """From the so many-th call on that hands over ``holding``, the system has no room any more."""
    real = getattr(os, function)
    made = []

    def write(descriptor: Any, data: bytes = b"", *offset: Any) -> Any:
        if holding in bytes(data):
            made.append(offset)
            if len(made) > calls:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, data, *offset) if data else real(descriptor)

    monkeypatch.setattr(os, function, write)


@pytest.mark.long
@pytest.mark.skipif(os.name != "posix", reason="counts pwrite")
@pytest.mark.parametrize(
    ("out", "function", "calls", "holding"),
    [
        ("out.npy", "pwrite", 90, b""),  # samples
        ("out.tif", "pwrite", 90, b""),
        ("out.npy", "write", 2, b'"done"'),  # the journal
        ("out.ome.zarr", "write", 0, b'"done"'),
        ("out.tif", "fsync", 22, b""),  # the final file, after six blocks
    ],
)
def test_a_disk_that_fills_is_no_refusal_and_is_resumed(
    upscale: Callable[..., tuple[int, str, str]],
    folder: Path,
    tiles: None,
    whole: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
    out: str,
    function: str,
    calls: int,
    holding: bytes,
) -> None:
    monkeypatch.setattr(writer, "FLUSH_SECONDS", 0.0)
    with monkeypatch.context() as patch:
        full_after(patch, function, calls, holding)
        code, said, err = upscale("in.png", out, "--resume")
    assert (code, said) == (1, ""), err
    assert err.startswith(
        f"diinn-fast: {out} is not complete, the disk is full: {out}.part keeps what was done"
    )
    assert err.count("\n") == 1 and names(folder) == sorted(["in.png", f"{out}.part"])
    assert upscale("in.png", out, "--resume")[::2] == (0, "")
    if not out.endswith("zarr"):
        np.testing.assert_array_equal(pixels(out), whole)
    assert names(folder) == sorted(["in.png", out])


def test_a_disk_that_fills_while_a_picture_in_memory_is_written(
    upscale: Callable[..., tuple[int, str, str]], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full_after(monkeypatch, "fsync", 0)
    code, said, err = upscale("in.png", "out.png")
    assert (code, said) == (1, "") and err.startswith(
        "diinn-fast: out.png could not be written, the disk is full: "
    )
    assert names(folder) == ["in.png"]
