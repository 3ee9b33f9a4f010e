"""`diinn-fast serve`: what it listens to, and the names of pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import uvicorn
from starlette.testclient import TestClient

from diinn_fast.cli import main
from diinn_fast.cli.serve import names
from tests.helpers.known_models import random_model, save


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, dict[str, Any]]]:
    """Applications and options that would have been run."""
    found: list[tuple[Any, dict[str, Any]]] = []
    monkeypatch.setattr(uvicorn, "run", lambda app, **options: found.append((app, options)))
    return found


def test_pictures_are_served_on_this_machine_only(
    started: list[tuple[Any, dict[str, Any]]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    picture = tmp_path / "my leaf.png"
    PIL.Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(picture)
    weights = save(random_model(), tmp_path / "weights")
    assert main(["serve", str(picture), "--weights", str(weights), "--port", "9123"]) == 0
    app, options = started[0]
    assert (options["host"], options["port"]) == ("127.0.0.1", 9123)
    assert "http://127.0.0.1:9123/" in capsys.readouterr().out
    with TestClient(app, base_url="http://localhost:9123") as client:
        assert client.get("/iiif/my-leaf/info.json").json()["width"] == 8


def test_names_are_plain_and_each_there_once() -> None:
    paths = [Path("a/Étang 1.png"), Path("b/Etang 1.jpg"), Path("@.tif"), Path("?.tif")]
    assert names(paths) == ["Etang-1", "Etang-1-2", "picture", "picture-2"]


def test_a_missing_picture_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "nowhere.png"]) == 2
    assert "nowhere.png" in capsys.readouterr().err
