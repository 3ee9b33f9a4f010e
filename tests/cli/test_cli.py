"""The console program: what it writes and prints, its exit codes, and that errors are one sentence
on stderr.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from diinn_fast import __version__
from diinn_fast.backends import int8
from diinn_fast.cli import COMMANDS, main
from diinn_fast.cli.upscale.arguments import parse
from diinn_fast.cli.upscale.values import join_pairs
from diinn_fast.formats import read_image
from diinn_fast.inference import Upscaler
from tests.helpers.commands import one_line, picture, size_of
from tests.helpers.known_models import nearest_model, random_model, save

# -- upscale: sizes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], (24, 32)),
        (["--scale", "3.7"], (22, 30)),
        (["--scale", "0.5"], (3, 4)),
        (["--scale", "2", "3"], (12, 24)),
        (["--size", "7", "31"], (7, 31)),
        (["--long-side", "20"], (15, 20)),
    ],
)
@pytest.mark.parametrize("options_first", [False, True])
def test_sizes(
    upscale: Callable[..., tuple[int, str, str]],
    folder: Path,
    options: list[str],
    expected: tuple[int, int],
    options_first: bool,
) -> None:
    code, _, _ = (
        upscale(*options, "in.png", "out.png")
        if options_first
        else upscale("in.png", "out.png", *options)
    )
    assert code == 0 and size_of("out.png") == expected


def test_options_may_stand_between_the_paths(
    upscale: Callable[..., tuple[int, str, str]], folder: Path
) -> None:
    assert upscale("in.png", "--scale", "2", "out.png", "-q") == (0, "", "")
    assert size_of("out.png") == (12, 16)


def test_pictures_named_by_a_number_are_not_a_scale() -> None:
    assert join_pairs(["--scale", "2", "in.png", "out.png"]) == [
        "--scale",
        "2",
        "in.png",
        "out.png",
    ]
    assert join_pairs(["--scale", "2", "3", "in.png", "o"]) == ["--scale", "2 3", "in.png", "o"]
    assert join_pairs(["in.png", "o", "--scale", "2"]) == ["in.png", "o", "--scale", "2"]


def test_pixels_are_right(upscale: Callable[..., tuple[int, str, str]], folder: Path) -> None:
    samples = picture(folder / "known.png", seed=5)
    upscale("known.png", "out.png", "--scale", 2)
    np.testing.assert_array_equal(
        np.array(PIL.Image.open("out.png")), samples.repeat(2, 0).repeat(2, 1)
    )


@pytest.mark.parametrize("name", ["out.jpg", "out.webp", "out.tif", "OUT.PNG"])
def test_formats(upscale: Callable[..., tuple[int, str, str]], folder: Path, name: str) -> None:
    assert upscale("in.png", name, "--scale", 2, "--quality", 80)[0] == 0
    assert read_image(name).rgb.shape == (3, 12, 16)


def test_orientation_is_applied(upscale: Callable[..., tuple[int, str, str]], folder: Path) -> None:
    exif = PIL.Image.Exif()
    exif[274] = 6  # to be turned by 90 degrees clockwise
    samples = picture(folder / "turned.png", exif=exif)
    upscale("turned.png", "out.png", "--scale", 2)
    expected = np.rot90(samples, -1).repeat(2, 0).repeat(2, 1)
    with PIL.Image.open("out.png") as out:
        np.testing.assert_array_equal(np.array(out), expected)
        assert out.getexif().get(274, 1) == 1, "must not be turned again by the viewer"


def test_self_ensemble_and_precision_are_passed_on(
    upscale: Callable[..., tuple[int, str, str]],
    folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    weights = save(random_model(), tmp_path_factory.mktemp("weights") / "random")
    outputs = []
    for n, options in enumerate(([], ["--self-ensemble"], ["--precision", "bf16"])):
        assert upscale("in.png", f"{n}.tif", "--scale", 2, *options, weights=weights)[0] == 0
        outputs.append(read_image(f"{n}.tif").rgb)
    assert all(not torch.equal(outputs[0], other) for other in outputs[1:])


# -- upscale: what it says -------------------------------------------------------------------------


def test_it_prints_sizes_time_and_backend(
    upscale: Callable[..., tuple[int, str, str]], folder: Path
) -> None:
    code, out, err = upscale("in.png", "out.png", "--scale", "3.7", "--backend", "eager")
    assert (code, err) == (0, "")
    assert re.fullmatch(
        r"in\.png 8x6 -> out\.png 30x22 \(x3\.7\) in \d+\.\d s, precision fp32, backend eager, "
        r"\d+ kpx/s\n",
        out,
    ), out


def test_quiet_and_verbose(upscale: Callable[..., tuple[int, str, str]], folder: Path) -> None:
    assert upscale("in.png", "a.png", "-q", "--scale", 9) == (0, "", "")
    _, _, err = upscale("in.png", "b.png", "-v")
    assert "fp32" in err and "mode 3" in err and "8x6" in err


def test_a_scale_beyond_training_warns_once_per_picture(
    upscale: Callable[..., tuple[int, str, str]], folder: Path
) -> None:
    picture(folder / "too.png")
    code, _, err = upscale("in.png", "too.png", "out", "--scale", 5)
    assert code == 0
    first, second = err.splitlines()
    assert first == second and "scale 5" in first and "1 to 4" in first


def test_a_smaller_output_is_a_clean_reduction_and_says_so(
    upscale: Callable[..., tuple[int, str, str]], folder: Path
) -> None:
    PIL.Image.fromarray(np.full((40, 60, 3), (200, 30, 90), np.uint8)).save("large.png")
    code, out, err = upscale("in.png", "large.png", "out", "--long-side", 12)
    assert code == 0 and "backend bicubic" in out
    one_line(err, "12x8 pixels is smaller than the picture of 60x40")
    assert (np.asarray(PIL.Image.open("out/large.png")) == (200, 30, 90)).all()
    assert size_of("out/in.png") == (9, 12)


# -- upscale: batches ------------------------------------------------------------------------------


def test_a_folder_keeps_names_and_formats(
    upscale: Callable[..., tuple[int, str, str]], folder: Path
) -> None:
    (folder / "scans").mkdir()
    for name in ("a.png", "b.jpg", "c.TIF"):
        picture(folder / "scans" / name)
    (folder / "scans" / "notes.txt").write_text("not a picture")
    code, out, err = upscale("scans", "large/deep", "--scale", 2)
    assert (code, err) == (0, "") and out.count("\n") == 3 + 1
    assert out.splitlines()[-1] == (
        "3 done, 1 skipped (1 no picture that is read: scans/notes.txt), 0 failed"
    )
    assert sorted(p.name for p in Path("large/deep").iterdir()) == ["a.png", "b.jpg", "c.TIF"]
    assert all(size_of(p) == (12, 16) for p in Path("large/deep").iterdir())


def test_a_bad_picture_is_skipped_and_reported_at_the_end(
    upscale: Callable[..., tuple[int, str, str]], folder: Path
) -> None:
    (folder / "scans").mkdir()
    for name in ("a.png", "b.png", "c.png"):
        picture(folder / "scans" / name)
    whole = (folder / "scans" / "b.png").read_bytes()
    (folder / "scans" / "b.png").write_bytes(whole[: len(whole) // 2])
    code, out, err = upscale("scans", "large", "--scale", 2)
    assert code == 1 and out.count("\n") == 2
    assert sorted(p.name for p in Path("large").iterdir()) == ["a.png", "c.png"]
    first, second = err.splitlines()
    assert "b.png" in first and "Traceback" not in err
    assert second == "diinn-fast: 2 done, 1 failed"
    code, out, err = upscale("scans", "large", "--scale", 2)
    assert code == 1 and out == "" and err.count("already exists") == 2, (
        "nothing is replaced unasked"
    )


def test_patterns_and_several_inputs(
    upscale: Callable[..., tuple[int, str, str]], folder: Path
) -> None:
    for name in ("x1.png", "x2.png", "y.png"):
        picture(folder / name)
    assert upscale("x*.png", "y.png", "x1.png", "out", "--scale", 2)[0] == 0
    assert sorted(p.name for p in Path("out").iterdir()) == ["x1.png", "x2.png", "y.png"]


def test_a_file_into_a_folder(upscale: Callable[..., tuple[int, str, str]], folder: Path) -> None:
    Path("existing").mkdir()
    for out in ("existing", "new/"):
        assert upscale("in.png", out, "--scale", 2)[0] == 0
        assert size_of(Path(out) / "in.png") == (12, 16)


# -- upscale: refusals -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["missing.png", "out.png"], ["missing.png", "does not exist"]),
        (["https://example.org/a.png?w=9", "out.png"], ["//example.org/a.png?w=9", "download"]),
        (["s3://pictures/a.zarr", "out.png"], ["s3://pictures/a.zarr", "download"]),
        (["in.png", "https://example.org/out.png"], ["//example.org/out.png", "send it there"]),
        (["in.png", "s3://pictures/out.zarr"], ["s3://pictures/out.zarr", "send it there"]),
        (["truncated.png", "out.png"], ["truncated.png", "cut off"]),
        (["text.png", "out.png"], ["text.png", "none of the pictures"]),
        (["empty.png", "out.png"], ["empty.png", "empty"]),
        (["in.png", "existing.png"], ["existing.png", "--overwrite"]),
        (["in.png", "no/such/folder/out.png"], ["no/such/folder"]),
        (["in.png", "out.bmp"], ["out.bmp", ".png"]),
        (["in.png", "out"], ["out", "extension"]),
        (["in.png", "in.png", "--overwrite"], ["in.png", "one of the inputs"]),
        (["in.png", "./in.png", "--overwrite"], ["in.png", "one of the inputs"]),
        (["in.png", "text.png", ".", "--overwrite"], ["one of the inputs"]),
        (["in.png", "sub/in.png", "out"], ["sub/in.png", "both"]),
        (["in.png", "text.png", "existing.png"], ["existing.png", "folder"]),
        (["in.png", "text.png", "new.png"], ["new.png", "folder"]),
        (["nothing*.png", "out"], ["nothing*.png"]),
        (["hollow", "out"], ["hollow", "no pictures"]),
        (["in.png"], ["output"]),
        ([], ["--help"]),
        (["in.png", "out.png", "--scale", "0"], ["scale", "positive"]),
        (["in.png", "out.png", "--scale", "-1.5"], ["scale", "positive"]),
        (["in.png", "out.png", "--scale", "nan"], ["scale", "positive"]),
        (["in.png", "out.png", "--scale", "2", "nan"], ["scale", "positive"]),
        (["in.png", "out.png", "--scale", "inf"], ["scale", "positive"]),
        (["in.png", "out.png", "--scale", "big"], ["--scale", "big"]),
        (["in.png", "out.png", "--scale", "2,5"], ["2,5", "2.5", "--scale 2 3"]),
        (["in.png", "out.png", "--size", "0", "5"], ["5x0"]),
        (["in.png", "out.png", "--size", "5"], ["--size", "1920x1080", "--width"]),
        (["in.png", "out.png", "--size", "96,72"], ["96,72", "1920x1080"]),
        (["in.png", "out.png", "--size", "4x6", "--width", "9"], ["--size", "--width"]),
        (["in.png", "out.png", "--width", "0"], ["0x0"]),
        (["in.png", "out.png", "--height", "-2"], ["-2x-2"]),
        (["in.png", "out.png", "--width", "9", "--height", "0"], ["9x0"]),
        (["in.png", "out.png", "--format", "png"], ["--format", "out.png"]),
        (["in.png", "out/", "--format", "docx"], ["docx"]),
        (["in.png", "out.png", "--skip-existing", "--overwrite"], ["--skip-existing"]),
        (["in.png", "out.png", "--long-side", "-3"], ["-3"]),
        (["in.png", "out.png", "--scale", "2", "--long-side", "9"], ["--scale", "--long-side"]),
        (["in.png", "out.png", "--scale", "2", "--width", "9"], ["--scale and --width do not"]),
        (["in.png", "out.jpg", "--size", "10", "70000"], ["JPEG", "65,5"]),
        (["in.png", "out.png", "--size", "8", "99999999"], ["99999999"]),
        (["in.png", "out.png", "--size", "16000000", "16000000"], ["GiB"]),
        (["in.png", "out.png", "--quality", "101"], ["--quality"]),
        (["in.png", "out.png", "--device", "tpu9"], ["tpu9"]),
        (["in.png", "out.png", "--precision", "fp8"], ["fp8", "fp16"]),
        (["in.png", "out.png", "--backend", "abacus"], ["abacus", "eager"]),
        (["in.png", "out.png", "--sclae", "2"], ["--sclae"]),
        (["in.png", "out.png", "-q", "-v"], ["-v"]),
        (["in.png", "out.png", "--weights", "no-such-model"], ["no-such-model", "bundled"]),
        (["in.png", "out.png", "--weights", "other.pt"], ["other.pt", "decoder.K.0.0.weight"]),
        (
            ["in.png", "out.png", "--weights", "misfit.pt"],
            ["misfit.pt", "encoder.body.3.body.0.weight"],
        ),
        (
            ["in.png", "out.png", "--weights", "nan.pt"],
            ["nan.pt", "decoder.last_layer.bias", "NaN"],
        ),
        (["in.png", "out.png", "--weights", "text.png"], ["text.png"]),
    ],
    ids=lambda value: " ".join(value).replace("/", "-") if isinstance(value, list) else None,
)
def test_refusals(
    folder: Path,
    model: Path,
    checkpoints: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: list[str],
) -> None:
    """Exit code 2, one sentence, and nothing written."""
    whole = (folder / "in.png").read_bytes()
    (folder / "truncated.png").write_bytes(whole[:-40])
    (folder / "text.png").write_text("this is no picture")
    (folder / "empty.png").touch()
    (folder / "existing.png").write_bytes(b"precious")
    for name in ("sub", "hollow"):
        (folder / name).mkdir()
    picture(folder / "sub" / "in.png")
    for path in checkpoints.iterdir():
        os.link(path, folder / path.name)
    before = sorted(folder.rglob("*"))
    assert main(["upscale", "--weights", str(model), *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    one_line(err, *words)
    assert sorted(folder.rglob("*")) == before
    assert (folder / "in.png").read_bytes() == whole and (
        folder / "existing.png"
    ).read_bytes() == b"precious"


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints that cannot be used."""
    folder = tmp_path_factory.mktemp("checkpoints")
    state = random_model().state_dict()
    torch.save({"features.0.weight": torch.zeros(1)}, folder / "other.pt")
    torch.save(
        {k: v for k, v in state.items() if k != "encoder.body.3.body.0.weight"},
        folder / "misfit.pt",
    )
    torch.save(
        {**state, "decoder.last_layer.bias": torch.full((3,), float("nan"))}, folder / "nan.pt"
    )
    return folder


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_without_cuda_is_refused(
    folder: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["upscale", "in.png", "out.png", "--weights", str(model), "--device", "cuda"]) == 2
    one_line(capsys.readouterr().err, "cuda", "not available", "cpu")


def test_a_backend_that_cannot_run_is_refused(
    upscale: Callable[..., tuple[int, str, str]], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diinn_fast.backends.eager.unavailable", lambda: "the test says so")
    code, _, err = upscale("in.png", "out.png", "--backend", "eager")
    assert code == 2
    one_line(err, "'eager' cannot run", "the test says so")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_write_protected_folder_is_refused(
    upscale: Callable[..., tuple[int, str, str]], folder: Path
) -> None:
    Path("locked").mkdir(mode=0o500)
    code, _, err = upscale("in.png", "locked/out.png")
    assert code == 2
    one_line(err, "locked")


def test_the_output_is_checked_before_the_work(
    upscale: Callable[..., tuple[int, str, str]], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Upscaler, "__call__", lambda *_, **__: pytest.fail("worked first"))
    picture(folder / "out.png")
    assert upscale("in.png", "out.png")[0] == 2
    assert upscale("in.png", "out.jpg", "--size", 10, 70000)[0] == 2


def test_overwrite_replaces_outputs(
    upscale: Callable[..., tuple[int, str, str]], folder: Path
) -> None:
    picture(folder / "out.png")
    assert upscale("in.png", "out.png", "--scale", 2, "--overwrite")[0] == 0
    assert size_of("out.png") == (12, 16)


# -- failures while working ------------------------------------------------------------------------


def test_a_network_that_overflows_fails_without_a_picture(
    upscale: Callable[..., tuple[int, str, str]],
    folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    network = nearest_model()
    with torch.no_grad():
        network.decoder.last_layer.weight.mul_(1e6)  # beyond fp16
    weights = save(network, tmp_path_factory.mktemp("weights") / "large")
    code, _, err = upscale("in.png", "out.png", "--precision", "fp16", weights=weights)
    assert code == 1 and not Path("out.png").exists()
    one_line(err, "fp16", "--precision fp32")


def test_unexpected_errors_are_one_line_and_debug_shows_more(
    upscale: Callable[..., tuple[int, str, str]], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("two\nlines")

    monkeypatch.setattr(Upscaler, "__call__", fail)
    code, _, err = upscale("in.png", "out.png")
    assert code == 1
    one_line(err, "RuntimeError: two lines", "--debug")
    code, _, err = upscale("in.png", "out.png", "--debug")
    assert code == 1 and "Traceback" in err and err.splitlines()[-1].startswith("diinn-fast: ")


def test_ctrl_c_in_process(
    upscale: Callable[..., tuple[int, str, str]], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Upscaler, "__call__", interrupt)
    code, _, err = upscale("in.png", "out.png")
    assert code == 130
    one_line(err, "interrupted")


# -- real processes --------------------------------------------------------------------------------


def process(*arguments: object, cwd: Path, **options: Any) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "diinn_fast", *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, cwd=cwd, env=environment, stdout=pipe, stderr=pipe, text=True, **options
    )


def test_as_a_process(folder: Path, model: Path) -> None:
    run = process(
        "upscale",
        "in.png",
        "out.png",
        "--scale",
        2,
        "--weights",
        model,
        "--device",
        "cpu",
        cwd=folder,
    )
    out, err = run.communicate(timeout=120)
    assert (run.returncode, err) == (0, "") and "in.png 8x6 -> out.png 16x12 (x2)" in out
    assert size_of("out.png") == (12, 16)


@pytest.mark.long
@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_ctrl_c_leaves_nothing_behind(folder: Path, model: Path) -> None:
    arguments = (
        "upscale",
        "in.png",
        "out.png",
        "--size",
        8000,
        8000,
        "--weights",
        model,
        "--device",
        "cpu",
        "-v",
    )
    # Shells start background jobs with SIGINT ignored, and children inherit that: a terminal's are
    # not.
    run = process(
        *arguments, cwd=folder, preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    )
    assert run.stderr is not None
    for line in run.stderr:
        if "by backend" in line:
            break
    run.send_signal(signal.SIGINT)
    _, rest = run.communicate(timeout=120)
    assert run.returncode == 130
    assert rest.splitlines()[-1] == "diinn-fast: interrupted" and "Traceback" not in rest
    assert [p.name for p in folder.iterdir()] == ["in.png"]


# -- other commands --------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [c for c in COMMANDS if c != "train"])
def test_help_has_an_example(capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert main([command, "--help"]) == 0
    out, err = capsys.readouterr()
    assert f"diinn-fast {command}" in out.partition("example:")[2] and err == ""


def test_help_version_and_unknown_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(command in out for command in COMMANDS)
    assert main(["--version"]) == 0
    assert __version__ in capsys.readouterr().out
    assert main([]) == 2
    capsys.readouterr()
    assert main(["upscal"]) == 2
    one_line(capsys.readouterr().err, "upscal", "info")


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    assert main(["info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["torch"] == torch.__version__ and facts["diinn_fast"] == __version__
    assert facts["threads"] == torch.get_num_threads() and "cpu" in facts["devices"]
    assert {row["backend"]: row["available"] for row in facts["backends"]}["eager"] == "yes"
    assert all(word in text for word in (__version__, torch.__version__, "eager", "available"))


@pytest.mark.parametrize(
    ("reason", "said"),
    [(None, "int8 for outputs of 8 bits per channel"), ("too old", "fp32 (not int8: too old)")],
)
def test_which_precision_auto_takes_is_said(
    upscale: Callable[..., tuple[int, str, str]],
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    reason: str | None,
    said: str,
) -> None:
    """By info before, and of each picture after."""
    monkeypatch.setattr(int8, "not_native", lambda: reason)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["info"]) == 0
    assert said in capsys.readouterr().out
    PIL.Image.fromarray(np.full((6, 8), 40000, np.uint16)).save("deep.png")
    taken = "fp32" if reason else "int8"
    auto = partial(upscale, "--precision", "auto", "--scale")
    assert f"precision {taken}, backend " in auto(2, "in.png", "out.png")[1]
    assert "precision fp32, backend " in auto(2, "deep.png", "deeper.png")[1]
    assert "s, backend bicubic" in auto(0.5, "in.png", "small.png")[1]
    assert "precision fp32, backend " in upscale("in.png", "exact.png", "--scale", 2)[1]
    # What is taken where nothing is said.
    assert parse(["in.png", "out.png"]).precision == "auto"


@pytest.mark.parametrize("fp16", [False, True])
def test_convert(folder: Path, capsys: pytest.CaptureFixture[str], fp16: bool) -> None:
    network = random_model()
    state = {f"net.{key}": value for key, value in network.state_dict().items()}
    parameters = {"arch": "diinn", "mode": 3, "init_q": False}
    torch.save({"state_dict": state, "hyper_parameters": parameters}, "official.ckpt")
    arguments = ["convert", "official.ckpt", "model", *(["--fp16"] if fp16 else [])]
    assert main(arguments) == 0
    assert "mode 3" in capsys.readouterr().out
    size = (folder / "model" / "model.safetensors").stat().st_size
    assert size == pytest.approx(
        (2 if fp16 else 4) * sum(p.numel() for p in network.parameters()), rel=0.02
    )
    assert sorted(p.name for p in Path("model").iterdir()) == ["config.json", "model.safetensors"]
    assert main(["upscale", "in.png", "out.png", "--weights", "model", "--device", "cpu"]) == 0
    capsys.readouterr()
    assert main(arguments) == 2
    one_line(capsys.readouterr().err, "--overwrite")
    assert main([*arguments, "--overwrite"]) == 0


def test_convert_refuses_what_fp16_cannot_hold(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = random_model()
    with torch.no_grad():
        network.decoder.last_layer.bias[0] = 1e6
    torch.save(network.state_dict(), "large.pt")
    assert main(["convert", "large.pt", "model", "--fp16", "--mode", "3"]) == 2
    one_line(capsys.readouterr().err, "decoder.last_layer.bias", "fp16")
    assert not list(Path("model").iterdir())
