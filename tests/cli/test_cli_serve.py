"""`diinn-fast serve`: what it listens to, and the names of pictures."""

from __future__ import annotations

import io
import queue
import re
import socket
import subprocess
import sys
import webbrowser
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import PIL.Image
import pytest
import uvicorn
from starlette.testclient import TestClient

from diinn_fast.backends import int8
from diinn_fast.cli import main
from diinn_fast.cli.serve import names
from diinn_fast.inference import Upscaler
from tests.helpers.known_models import random_model, save


class Started(NamedTuple):
    app: Any
    host: str
    port: int


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Started]:
    """Servers that would have been run."""
    found: list[Started] = []

    def run(server: uvicorn.Server, sockets: list[socket.socket]) -> None:
        (listening,) = sockets
        found.append(Started(server.config.app, *listening.getsockname()))
        listening.close()

    monkeypatch.setattr(uvicorn.Server, "run", run)
    return found


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """A picture, and the option that names a model."""
    picture = tmp_path / "my leaf.png"
    PIL.Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(picture)
    return [str(picture), "--weights", str(save(random_model(), tmp_path / "weights"))]


def iter_until(lines: Iterable[str], start: str) -> Iterator[str]:
    """Lines up to one that begins so, with it."""
    for line in lines:
        yield line
        if line.startswith(start):
            return


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def test_pictures_are_served_on_this_machine_only(
    started: list[Started], files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    port = free_port()
    assert main(["serve", *files, "--port", str(port)]) == 0
    assert (started[0].host, started[0].port) == ("127.0.0.1", port)
    assert f"http://127.0.0.1:{port}/" in capsys.readouterr().out
    with TestClient(started[0].app, base_url="http://localhost:9123") as client:
        assert client.get("/iiif/my-leaf/info.json").json()["width"] == 8
        assert client.get("/pictures.json").json()["drops"]


def test_only_this_machine_may_drop_pictures(started: list[Started], files: list[str]) -> None:
    assert main(["serve", *files, "--host", "0.0.0.0", "--port", "0"]) == 0
    with TestClient(started[0].app) as client:
        assert not client.get("/pictures.json").json()["drops"]


@pytest.mark.parametrize(
    ("options", "precision"), [([], "int8"), (["--precision", "fp32"], "fp32")]
)
def test_answers_of_8_bits_are_made_in_integers(
    started: list[Started],
    files: list[str],
    options: list[str],
    precision: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a picture of 16 bits too, where the CPU has instructions for them."""
    monkeypatch.setattr(int8, "not_native", lambda: None)
    given = np.random.default_rng(0).integers(0, 1 << 16, (6, 8)).astype(np.uint16)
    PIL.Image.fromarray(given).save(files[0])
    assert main(["serve", *files, "--port", "0", *options]) == 0
    view = Upscaler(files[2], device="cpu", precision=precision).open(given)
    expected = (view.render(None, (12, 16)) / np.float32(65535) * 255 + 0.5).astype(np.uint8)
    with TestClient(started[0].app, base_url="http://localhost") as client:
        answer = client.get("/iiif/my-leaf/full/^16,12/0/default.png")
    with PIL.Image.open(io.BytesIO(answer.content)) as shown:
        np.testing.assert_array_equal(np.asarray(shown), expected)


def test_tiles_are_kept_in_a_folder(
    started: list[Started], files: list[str], tmp_path: Path
) -> None:
    assert main(["serve", *files, "--port", "0", "--cache", str(tmp_path / "tiles")]) == 0
    with TestClient(started[0].app, base_url="http://localhost") as client:
        assert client.get("/iiif/my-leaf/full/^16,12/0/default.png").status_code == 200
    assert len(list((tmp_path / "tiles").glob("*.tile"))) == 1


def test_view_opens_the_browser_where_it_listens(
    started: list[Started], files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: queue.Queue[str] = queue.Queue()
    monkeypatch.setattr(webbrowser, "open", opened.put)
    assert main(["view", *files]) == 0
    assert opened.get(timeout=60) == f"http://127.0.0.1:{started[0].port}/"


def test_a_port_that_is_taken_is_refused(
    files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["serve", *files, "--port", str(taken.getsockname()[1])]) == 2
    assert "choose another --port" in capsys.readouterr().err


@pytest.mark.parametrize("port", ["99999", "8x", "-1"])
def test_what_is_no_port_is_refused(
    files: list[str], port: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", *files, f"--port={port}"]) == 2
    assert "is no port: give a number up to 65535" in capsys.readouterr().err


def test_a_cache_that_is_no_folder_is_refused(
    files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", *files, "--port", "0", "--cache", files[0]]) == 2
    assert "choose another --cache" in capsys.readouterr().err


@pytest.mark.long
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM to send")
def test_a_server_that_is_told_to_end_sends_the_line_away(files: list[str], tmp_path: Path) -> None:
    """What it is at is finished; nothing is a 500, and nobody reads a traceback."""
    command = [sys.executable, "-m", "diinn_fast", "serve", *files, "--port", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None and server.stderr is not None
        address = re.search(r"http://\S+", "".join(iter_until(server.stdout, "open ")))[0]
        with ThreadPoolExecutor(20) as clients:
            # Most are still in line when the first is answered.
            asked = [
                clients.submit(
                    httpx.get, f"{address}iiif/my-leaf/full/^{200 - n},/0/default.png", timeout=120
                )
                for n in range(20)
            ]
            next(as_completed(asked))
            server.terminate()
            answers = [future.result().status_code for future in asked]
        server.wait(120)
        assert set(answers) == {200, 503}
        assert server.stderr.read() == ""


def test_names_are_plain_and_each_there_once() -> None:
    paths = [Path("a/Étang 1.png"), Path("b/Etang 1.jpg"), Path("@.tif"), Path("?.tif")]
    assert names(paths) == ["Etang-1", "Etang-1-2", "picture", "picture-2"]


def test_a_missing_picture_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "nowhere.png"]) == 2
    assert "nowhere.png" in capsys.readouterr().err
