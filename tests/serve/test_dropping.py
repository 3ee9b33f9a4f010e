"""Pictures dropped onto the page: served from memory, a few at a time, within limits."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import PIL.Image
import pytest
from helpers.known_models import random_model
from starlette.testclient import TestClient

from diinn_fast.inference import Upscaler
from diinn_fast.serve import Picture, app, gallery, make_app

SAMPLES = np.random.default_rng(3).integers(0, 256, (9, 14, 3), np.uint8)


def file_of(samples: np.ndarray) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(samples).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def upscaler() -> Upscaler:
    return Upscaler(random_model(), device="cpu")


@pytest.fixture
def client(upscaler: Upscaler) -> Iterator[TestClient]:
    first = Picture("first", upscaler.open(SAMPLES[::-1].copy()))
    served = make_app(
        [first],
        hosts=["testserver"],
        opener=lambda data: gallery.dropped_view(upscaler, data, 1 << 20),
    )
    with TestClient(served) as client:
        yield client


def drop(client: TestClient, data: bytes, title: str = "leaf", **headers: str) -> Any:
    return client.post("/pictures", params={"title": title}, content=data, headers=headers)


def test_a_dropped_picture_is_served_like_the_others(
    client: TestClient, upscaler: Upscaler
) -> None:
    found = drop(client, file_of(SAMPLES), "Étang <1>").json()
    assert found["name"].startswith("Etang-1-")
    assert found in client.get("/pictures.json").json()["pictures"]
    body = client.get(f"/iiif/{found['name']}/full/^28,18/0/default.png").content
    samples = np.asarray(PIL.Image.open(io.BytesIO(body)))
    np.testing.assert_array_equal(samples, upscaler(SAMPLES, scale=2))


def test_the_oldest_makes_room_and_those_of_the_start_stay(client: TestClient) -> None:
    names = [
        drop(client, file_of(SAMPLES[n:])).json()["name"] for n in range(gallery.MAX_DROPPED + 1)
    ]
    listed = [picture["name"] for picture in client.get("/pictures.json").json()["pictures"]]
    assert listed == ["first", *names[1:]]
    assert client.get(f"/iiif/{names[0]}/info.json").status_code == 404


def test_who_makes_room_while_it_is_enlarged_is_answered_and_who_waits_is_told(
    upscaler: Upscaler, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoding = threading.Event()
    go_on = threading.Event()
    real = Upscaler.encode

    def slow(*arguments: Any) -> Any:
        encoding.set()
        assert go_on.wait(60)
        return real(*arguments)

    monkeypatch.setattr(Upscaler, "encode", slow)

    async def use() -> None:
        app = make_app(
            [],
            hosts=["testserver"],
            opener=lambda data: gallery.dropped_view(upscaler, data, 1 << 20),
        )
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://testserver") as client:

            async def dropped(samples: np.ndarray) -> str:
                answer = await client.post("/pictures", content=file_of(samples))
                return str(answer.json()["name"])

            name = await dropped(SAMPLES)
            path = f"/iiif/{name}/full/^28,18/0"
            rendered = asyncio.create_task(client.get(f"{path}/default.png"))
            await asyncio.to_thread(encoding.wait, 60)
            waiting = asyncio.create_task(client.get(f"{path}/gray.png"))
            # None of them waits for the network.
            for n in range(gallery.MAX_DROPPED):
                await dropped(SAMPLES[n:])
            go_on.set()
            samples = np.asarray(PIL.Image.open(io.BytesIO((await rendered).content)))
            np.testing.assert_array_equal(samples, upscaler(SAMPLES, scale=2))
            assert (await waiting).status_code == 404

    asyncio.run(asyncio.wait_for(use(), 120))


def test_no_picture_and_too_large_ones_are_refused(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert drop(client, b"no picture").status_code == 415
    monkeypatch.setattr(gallery, "MAX_PIXELS", 100)
    assert drop(client, file_of(SAMPLES)).status_code == 415
    monkeypatch.setattr(gallery, "MAX_DECODED", 100)
    assert drop(client, file_of(SAMPLES)).status_code == 415
    monkeypatch.setattr(app, "MAX_FILE", 100)
    assert drop(client, file_of(SAMPLES)).status_code == 413
    assert len(client.get("/pictures.json").json()["pictures"]) == 1


def test_who_leaves_while_a_file_is_sent_is_no_error() -> None:
    sent: list[Any] = [
        {"type": "http.request", "body": b"half", "more_body": True},
        {"type": "http.disconnect"},
    ]
    answers: list[Any] = []

    async def receive() -> Any:
        return sent.pop(0)

    async def send(message: Any) -> None:
        answers.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/pictures",
        "query_string": b"",
        "headers": [(b"host", b"testserver")],
        "server": ("testserver", 80),
        "scheme": "http",
    }
    served = make_app([], hosts=["testserver"], opener=lambda data: pytest.fail("half a file"))
    asyncio.run(served(scope, receive, send))
    assert answers[0]["status"] == 499


def test_pages_of_other_sites_cannot_drop(client: TestClient) -> None:
    data = file_of(SAMPLES)
    assert drop(client, data, Origin="http://evil.example").status_code == 403
    assert drop(client, data, Origin="null").status_code == 403
    assert drop(client, data, Origin="http://testserver").status_code == 200


def test_a_server_without_it_takes_none(upscaler: Upscaler) -> None:
    served = make_app([Picture("first", upscaler.open(SAMPLES))], hosts=["testserver"])
    with TestClient(served) as client:
        assert not client.get("/pictures.json").json()["drops"]
        assert drop(client, file_of(SAMPLES)).status_code == 403
