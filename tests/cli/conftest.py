"""A working directory with a picture, and the command in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from diinn_fast.cli import main
from tests.helpers.commands import picture
from tests.helpers.known_models import nearest_model, save


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a model that is nearest-neighbour interpolation."""
    return save(nearest_model(), tmp_path_factory.mktemp("weights") / "nearest")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with one picture in it."""
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "in.png")
    return tmp_path


@pytest.fixture
def upscale(folder: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run ``diinn-fast upscale`` with the known model on the CPU: (exit code, stdout, stderr).

    In float32, in which that model is exact, unless the arguments say otherwise.
    """

    def run(*arguments: object, weights: object = model) -> tuple[int, str, str]:
        words = [str(argument) for argument in arguments]
        named = [] if "--precision" in words else ["--precision", "fp32"]
        code = main(["upscale", *words, *named, "--device", "cpu", "--weights", str(weights)])
        return code, *capsys.readouterr()

    return run
