"""The server: its pixels, its headers, what it makes how often, and what it refuses."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import numpy as np
import PIL.Image
import pytest
import zarr
from starlette.testclient import TestClient

import diinn_fast
from diinn_fast.model import DIINN
from diinn_fast.serve import Picture, make_app, site
from diinn_fast.serve import tiles as tiles_module
from diinn_fast.serve.tiles import MAX_WAITING, NICE, BusyError, GoneError, Tiles
from tests.helpers.known_models import random_model

HEIGHT = 12
WIDTH = 20
SECRET = b"not a picture"


@pytest.fixture(scope="module")
def model() -> DIINN:
    return random_model()


@pytest.fixture(scope="module")
def samples() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)


@pytest.fixture(scope="module")
def folder(samples: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a picture to serve, and files beside it that are not served."""
    folder = tmp_path_factory.mktemp("pictures")
    PIL.Image.fromarray(samples).save(folder / "leaf.png")
    PIL.Image.fromarray(samples[::-1]).save(folder / "other.png")
    (folder / "secret.txt").write_bytes(SECRET)
    return folder


@pytest.fixture(scope="module")
def client(folder: Path, model: DIINN) -> Iterator[TestClient]:
    picture = Picture("leaf", diinn_fast.open(folder / "leaf.png", model, device="cpu"))
    app = make_app([picture], hosts=["testserver"], origins=["*"])
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def pixels(client: TestClient, path: str) -> np.ndarray:
    response = client.get(f"/iiif/{path}")
    assert response.status_code == 200, response.text
    return np.asarray(PIL.Image.open(io.BytesIO(response.content)))


# -- pixels ----------------------------------------------------------------------------------------


def test_tiles_put_together_are_the_rendered_picture(
    client: TestClient, samples: np.ndarray, model: DIINN
) -> None:
    size = (HEIGHT * 4, WIDTH * 4)
    whole = diinn_fast.open(samples, model, device="cpu").render(None, size)
    made = np.zeros_like(whole)
    # Level x4 of the grid enlarged 64 times: 32 pixels of it are 512 of the grid.
    for y in range(0, size[0], 32):
        for x in range(0, size[1], 32):
            rows = min(32, size[0] - y)
            columns = min(32, size[1] - x)
            region = f"{x * 16},{y * 16},{columns * 16},{rows * 16}"
            tile = pixels(client, f"leaf@64/{region}/{columns},{rows}/0/default.png")
            made[y : y + rows, x : x + columns] = tile
    np.testing.assert_array_equal(made, whole)


def test_enlarging_the_true_grid_gives_the_same_pixels(
    client: TestClient, samples: np.ndarray, model: DIINN
) -> None:
    whole = diinn_fast.open(samples, model, device="cpu").render(None, (30, 50))
    np.testing.assert_array_equal(pixels(client, "leaf/full/^50,30/0/default.png"), whole)
    part = pixels(client, "leaf/4,2,8,6/^20,15/0/default.png")
    np.testing.assert_array_equal(part, whole[5:20, 10:30])


def test_reductions_are_antialiased_and_do_not_run_the_network(
    client: TestClient, samples: np.ndarray
) -> None:
    small = pixels(client, "leaf/full/10,6/0/default.png").astype(int)
    picture = PIL.Image.fromarray(samples)
    expected = np.asarray(picture.resize((10, 6), PIL.Image.Resampling.BICUBIC)).astype(int)
    assert abs(small - expected).max() <= 2  # Pillow rounds its weights and between the axes
    np.testing.assert_array_equal(pixels(client, "leaf/full/max/0/default.png"), samples)


def test_the_bicubic_quality_is_bicubic(client: TestClient, samples: np.ndarray) -> None:
    flat = pixels(client, "leaf/full/^80,48/0/bicubic.png").astype(int)
    assert abs(flat - pixels(client, "leaf/full/^80,48/0/default.png")).max() > 2
    assert abs(flat[::4, ::4] - samples).mean() < abs(flat.mean() - samples).mean()


def test_mirror_comes_before_the_turn(client: TestClient, samples: np.ndarray) -> None:
    turned = pixels(client, "leaf/full/max/!90/default.png")
    np.testing.assert_array_equal(turned, np.rot90(samples[:, ::-1], k=-1))


def test_qualities_and_formats(client: TestClient) -> None:
    assert pixels(client, "leaf/full/max/0/gray.png").ndim == 2
    assert pixels(client, "leaf/full/max/0/bitonal.png").dtype == bool
    for form, kind in (("jpg", "image/jpeg"), ("webp", "image/webp")):
        response = client.get(f"/iiif/leaf/full/max/0/color.{form}")
        assert response.headers["content-type"] == kind
        assert PIL.Image.open(io.BytesIO(response.content)).size == (WIDTH, HEIGHT)


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_grey_and_transparent_pictures(channels: int, model: DIINN, tmp_path: Path) -> None:
    samples = np.random.default_rng(1).integers(0, 256, (6, 8, channels), np.uint8)
    PIL.Image.fromarray(samples.squeeze()).save(tmp_path / "in.png")
    app = make_app(
        [Picture("in", diinn_fast.open(tmp_path / "in.png", model))], hosts=["testserver"]
    )
    with TestClient(app) as client:
        shape = (12, 16) if channels == 1 else (12, 16, channels)
        assert pixels(client, "in/full/^16,12/0/default.png").shape == shape
        np.testing.assert_array_equal(
            pixels(client, "in/full/max/0/default.png"), samples.squeeze()
        )
        assert client.get("/iiif/in/full/max/0/default.jpg").status_code == 200


# -- HTTP ------------------------------------------------------------------------------------------


def test_info_is_at_its_own_address_and_the_service_leads_to_it(client: TestClient) -> None:
    answer = client.get("/iiif/leaf@64", follow_redirects=False)
    assert answer.status_code == 303
    info = client.get(answer.headers["location"]).json()
    assert info["id"] == "http://testserver/iiif/leaf@64"
    assert (info["width"], info["height"]) == (WIDTH * 64, HEIGHT * 64)
    linked = client.get("/iiif/leaf/info.json", headers={"Accept": "application/ld+json"})
    assert linked.headers["content-type"].startswith("application/ld+json;profile=")


def test_an_unchanged_answer_is_not_sent_again(client: TestClient) -> None:
    first = client.get("/iiif/leaf/full/max/0/default.png")
    again = client.get(
        f"/iiif/leaf/full/{WIDTH},/0/default.png",
        headers={"If-None-Match": first.headers["etag"]},
    )
    assert (again.status_code, again.content) == (304, b"")
    assert 'rel="canonical"' in first.headers["link"]


def test_other_weights_give_other_tags(
    client: TestClient, folder: Path, samples: np.ndarray
) -> None:
    other = Picture("leaf", diinn_fast.open(folder / "leaf.png", random_model(mode=4)))
    with TestClient(make_app([other], hosts=["testserver"])) as changed:
        path = "/iiif/leaf/full/max/0/default.png"
        assert changed.get(path).headers["etag"] != client.get(path).headers["etag"]


def test_the_page_and_its_parts(client: TestClient) -> None:
    for path in ("/", *(f"/{name}" for name in site.FILES)):
        answer = client.get(path)
        assert answer.status_code == 200
        assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert "Redistribution" in client.get("/openseadragon-license.txt").text
    listed = client.get("/pictures.json").json()["pictures"]
    assert listed == [{"name": "leaf", "width": WIDTH, "height": HEIGHT, "alpha": False}]


def test_the_first_paint_comes_with_the_page(client: TestClient) -> None:
    page = client.get("/").text
    while "<img" not in page:  # made in the background since the start
        page = client.get("/").text
    data = re.search(r'src="data:image/webp;base64,([^"]+)"', page)[1]
    seen = np.asarray(PIL.Image.open(io.BytesIO(base64.b64decode(data)))).astype(int)
    width = site.FIRST_SIDE
    height = width * HEIGHT // WIDTH
    assert seen.shape == (height, width, 3)
    bicubic = pixels(client, f"leaf/full/^{width // 4},{height // 4}/0/bicubic.png").astype(int)
    assert abs(seen[2::4, 2::4] - bicubic[: height // 4]).mean() < 8
    # All the rest of it is in the page, too.
    facts = json.loads(re.search(r'<script type="application/json"[^>]*>(.*)</script>', page)[1])
    assert facts == client.get("/pictures.json").json()
    assert "stylesheet" not in page
    again = client.get("/", headers={"If-None-Match": client.get("/").headers["etag"]})
    assert again.status_code == 304


def test_other_sites_may_read_only_where_they_are_named(folder: Path, model: DIINN) -> None:
    app = make_app([Picture("leaf", diinn_fast.open(folder / "leaf.png", model))])
    with TestClient(app, base_url="http://127.0.0.1:8000") as client:
        answer = client.get("/iiif/leaf/info.json", headers={"Origin": "http://example.org"})
        assert "access-control-allow-origin" not in answer.headers
        # a name of someone else's that leads to this machine
        answer = client.get("/iiif/leaf/info.json", headers={"Host": "evil.example:8000"})
        assert answer.status_code == 400


HOSTILE = [
    "/iiif/other/info.json",
    "/iiif/secret.txt/info.json",
    "/iiif/leaf@63/info.json",
    "/iiif/leaf@/info.json",
    "/iiif/leaf@64@64/info.json",
    "/iiif/../secret.txt",
    "/iiif/..%2Fsecret.txt/full/max/0/default.png",
    "/iiif/%2e%2e%2f%2e%2e%2fetc%2fpasswd/full/max/0/default.png",
    "/iiif/leaf%00.png/full/max/0/default.png",
    "/iiif/FOLDER%2Fother.png/full/max/0/default.png",
    "/iiif/leaf/full/^999999,999999/0/default.png",
    "/iiif/leaf/0,0,1,1/^1000,1000/0/default.png",
    "/iiif/leaf@64/full/^2000,2000/0/default.png",
    "/iiif/leaf/full/max/0/default.png/../../secret.txt",
    "/iiif/leaf/full/max/1e3/default.png",
    "/iiif/leaf/pct:0,0,1e400,5/max/0/default.png",
    "/iiif/leaf/0,0,٣,٣/max/0/default.png",
    "/iiif/leaf/full/max/0/default.svg",
    "/iiif/leaf/" + "9" * 5000 + ",0,1,1/max/0/default.png",
    "/page/index.html",
    "/secret.txt",
    "//etc/passwd",
]


@pytest.mark.parametrize("url", HOSTILE)
def test_hostile_urls_are_refused_and_read_nothing(
    client: TestClient, folder: Path, url: str
) -> None:
    url = url.replace("FOLDER", quote(str(folder), safe=""))
    made = client.app.state.tiles.made
    answer = client.get(url)
    assert 400 <= answer.status_code < 500, answer.status_code
    assert SECRET not in answer.content
    assert client.app.state.tiles.made == made


def test_only_reading_is_allowed(client: TestClient) -> None:
    for method in ("POST", "PUT", "DELETE"):
        assert client.request(method, "/iiif/leaf/full/max/0/default.png").status_code == 405


def test_a_file_that_changes_or_vanishes_is_a_503_and_its_path_stays_here(
    model: DIINN, samples: np.ndarray, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    np.save(tmp_path / "map.npy", samples)
    zarr.create_array(tmp_path / "gone.zarr", data=samples)
    shown = [
        Picture(path.stem, diinn_fast.open(path, model)) for path in sorted(tmp_path.iterdir())
    ]
    with TestClient(make_app(shown, hosts=["testserver"])) as client:
        seen = client.get("/iiif/map/full/max/0/default.png")
        np.save(tmp_path / "map.npy", samples[::-1])
        (tmp_path / "gone.zarr").rename(tmp_path / "away.zarr")
        for name in ("map", "gone"):
            for words in ("^80,48/0/default.png", "^80,48/0/bicubic.png", "10,6/0/default.png"):
                answer = client.get(f"/iiif/{name}/full/{words}")
                assert (answer.status_code, str(tmp_path) in answer.text) == (503, False)
        # What was made of the first file is no mixture.
        again = client.get("/iiif/map/full/max/0/default.png")
        assert again.content == seen.content
    assert "has changed" in caplog.text and "gone.zarr has vanished: restore it" in caplog.text


# -- the line and the cache ------------------------------------------------------------------------


async def present() -> bool:
    return False


async def left() -> bool:
    return True


def test_an_answer_is_made_once_however_many_ask_at_once() -> None:
    tiles = Tiles(1 << 20)
    made = []

    def make() -> bytes:
        made.append(1)
        return b"tile"

    async def ask() -> list[bytes]:
        return await asyncio.gather(*(tiles.get("a", make, False, present) for _ in range(50)))

    assert asyncio.run(ask()) == [b"tile"] * 50
    assert len(made) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a niceness per thread")
def test_the_network_steps_back_behind_all_else() -> None:
    def niceness() -> bytes:
        return str(os.getpriority(os.PRIO_PROCESS, threading.get_native_id())).encode()

    async def ask() -> tuple[bytes, bytes]:
        tiles = Tiles(1 << 20)
        sharp = await tiles.get("a", niceness, False, present)
        return sharp, await tiles.get("b", niceness, True, present)

    sharp, quick = map(int, asyncio.run(ask()))
    own = os.getpriority(os.PRIO_PROCESS, 0)
    assert (sharp, quick) == (min(19, own + NICE), own)


def test_the_cache_stays_within_its_bound_and_keeps_what_was_used_last() -> None:
    tiles = Tiles(100)
    made = []

    async def ask(key: str, size: int = 40) -> bytes:
        def make() -> bytes:
            made.append(key)
            return bytes(size)

        return await tiles.get(key, make, False, present)

    async def use() -> None:
        for key in ("a", "b", "a", "c", "a", "b"):
            await ask(key)
        await ask("large", 101)
        await ask("large", 101)

    asyncio.run(use())
    assert made == ["a", "b", "c", "b", "large", "large"]


def test_who_left_is_not_worked_for_and_a_full_line_is_closed() -> None:
    async def use() -> None:
        tiles = Tiles(1 << 20)
        with pytest.raises(GoneError):
            await tiles.get("a", lambda: b"never", False, left)
        waiting = [
            asyncio.ensure_future(tiles.get(str(n), lambda: b"tile", False, present))
            for n in range(MAX_WAITING)
        ]
        await asyncio.sleep(0)
        with pytest.raises(BusyError):
            await tiles.get("one more", lambda: b"tile", False, present)
        assert await asyncio.gather(*waiting) == [b"tile"] * MAX_WAITING
        assert await tiles.get("one more", lambda: b"tile", False, present) == b"tile"

    asyncio.run(use())


def test_a_line_that_is_closed_sends_all_away_but_the_one_at_its_head() -> None:
    async def use() -> None:
        tiles = Tiles(1 << 20)

        def make() -> bytes:
            tiles.stop()
            return b"tile"

        asked = (tiles.get(str(n), make, False, present) for n in range(5))
        first, *others = await asyncio.gather(*asked, return_exceptions=True)
        assert first == b"tile"
        assert all(isinstance(answer, BusyError) for answer in others)

    asyncio.run(use())


def test_an_end_does_not_wait_long_for_what_is_being_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles_module, "ENDING_SECONDS", 0.01)
    go_on = threading.Event()

    async def use() -> None:
        tiles = Tiles(1 << 20)

        def make() -> bytes:
            tiles.stop()
            assert go_on.wait(60)
            return b"too late"

        asked = (tiles.get(str(n), make, False, present) for n in range(3))
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert all(isinstance(answer, BusyError) for answer in answers)
        go_on.set()
        tiles.close()

    asyncio.run(asyncio.wait_for(use(), 60))
