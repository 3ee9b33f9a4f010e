"""Answers as bytes: made once however many ask, kept within a bound, a few at a time."""

from __future__ import annotations

import asyncio
import io
import os
import sys
import threading
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import PIL.Image
from starlette.concurrency import run_in_threadpool

from diinn_fast.serve.disk import DiskCache
from diinn_fast.serve.iiif import ImageRequest
from diinn_fast.serve.picture import Picture, locate

MAX_WAITING = 128
"""Most requests in line; further ones are told to come back."""

ENDING_SECONDS = 10
"""Longest time, once the line is closed, for what is being made."""

NICE = 4
"""How far the network steps back, in Unix's measure of niceness."""

_TURNS = {
    90: PIL.Image.Transpose.ROTATE_270,
    180: PIL.Image.Transpose.ROTATE_180,
    270: PIL.Image.Transpose.ROTATE_90,
}


class BusyError(Exception):
    """Too many requests are in line, or none is worked on any more: answered with status 503."""


class GoneError(Exception):
    """Nobody can use the answer any more."""


class Tiles:
    """A cache of encoded answers with a line before it.

    Those of the network are made one at a time, since each uses all cores, and step back behind
    all else that the machine does; those of bicubic, which are a first paint, two at a time beside
    it. Who comes to the head of the line looks into the
    cache again, so that an answer is made once however many ask for it meanwhile.

    Args:
        max_bytes: most bytes of answers to keep; the least recently used make room.
        disk: where those of the network are kept, too.
    """

    def __init__(self, max_bytes: int, disk: DiskCache | None = None) -> None:
        self._most = max_bytes
        self._disk = disk
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._bytes = 0
        self._waiting = 0
        self._stopped = False
        self._over = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sharp = asyncio.Semaphore(1)
        self._quick = asyncio.Semaphore(2)
        self._network = ThreadPoolExecutor(1, "diinn-tiles", initializer=_step_back)
        self.made = 0

    async def get(
        self, key: str, make: Callable[[], bytes], quick: bool, gone: Callable[[], Awaitable[bool]]
    ) -> bytes:
        """The answer kept under ``key``, or made by ``make`` in a thread.

        Raises:
            BusyError: the line is full, or was closed by `stop`.
            GoneError: ``gone`` said so when its turn came.
        """
        self._loop = asyncio.get_running_loop()
        answer = asyncio.ensure_future(self._get(key, make, quick, gone))
        over = asyncio.ensure_future(self._over.wait())
        try:
            await asyncio.wait((answer, over), return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                raise BusyError
            return answer.result()
        finally:
            answer.cancel()
            over.cancel()

    async def _get(
        self, key: str, make: Callable[[], bytes], quick: bool, gone: Callable[[], Awaitable[bool]]
    ) -> bytes:
        # The same answer may have been made meanwhile, or nobody may wait for it any more.
        if (found := self._find(key)) is not None:
            return found
        disk = None if quick else self._disk
        if disk and (kept := await run_in_threadpool(disk.get, key)) is not None:
            self._keep(key, kept)
            return kept
        # A refusal at once is better than an answer after everybody has left.
        if self._waiting >= MAX_WAITING:
            raise BusyError
        self._waiting += 1
        try:
            async with self._quick if quick else self._sharp:
                if (found := self._find(key)) is not None:
                    return found
                if self._stopped:
                    raise BusyError
                if await gone():
                    raise GoneError
                body = await (run_in_threadpool(make) if quick else self._behind(make))
                self.made += 1
                self._keep(key, body)
        finally:
            self._waiting -= 1
        if disk:
            await run_in_threadpool(disk.put, key, body)
        return body

    def stop(self) -> None:
        """Make nothing more: who is in line is sent away, and after `ENDING_SECONDS` who still
        waits for what is being made. From any thread, or a signal.
        """
        self._stopped = True
        if (loop := self._loop) is not None:
            loop.call_soon_threadsafe(loop.call_later, ENDING_SECONDS, self._over.set)

    def close(self) -> None:
        """End the thread of the network, after the tile that it is at."""
        self._network.shutdown(cancel_futures=True)

    async def _behind(self, make: Callable[[], bytes]) -> bytes:
        return await asyncio.get_running_loop().run_in_executor(self._network, make)

    def _find(self, key: str) -> bytes | None:
        if (body := self._kept.get(key)) is not None:
            self._kept.move_to_end(key)
        return body

    def _keep(self, key: str, body: bytes) -> None:
        # Two quick requests of one key may both have made it: the later one takes its place.
        self._bytes -= len(self._kept.pop(key, b""))
        self._kept[key] = body
        self._bytes += len(body)
        while self._bytes > self._most:
            _, dropped = self._kept.popitem(last=False)
            self._bytes -= len(dropped)


def _step_back() -> None:
    """Let this thread, and those that it starts for its work, wait for others to leave a core: the
    page and bicubic tiles answer at once while the network computes.
    """
    if sys.platform == "linux":  # elsewhere this would be the whole process
        thread = threading.get_native_id()
        own = os.getpriority(os.PRIO_PROCESS, thread)
        os.setpriority(os.PRIO_PROCESS, thread, min(19, own + NICE))


def is_quick(picture: Picture, request: ImageRequest, zoom: int) -> bool:
    """Whether bicubic answers: asked for by name, or the picture does not get larger."""
    if request.quality == "bicubic":
        return True
    _, (rows, columns) = locate(request.region, request.size, zoom, (picture.height, picture.width))
    return rows <= picture.height and columns <= picture.width


def encode(picture: Picture, request: ImageRequest, zoom: int) -> bytes:
    """The file that a request asks for, of the picture's grid enlarged ``zoom`` times."""
    cut = locate(request.region, request.size, zoom, (picture.height, picture.width))
    quick = is_quick(picture, request, zoom)
    samples = picture.bicubic(cut) if quick else picture.sharp(cut)
    image = _shaped(_as_pil(samples), request)
    return _written(image, request.format, picture.icc)


def _as_pil(samples: np.ndarray) -> PIL.Image.Image:
    """Grey, grey with alpha, RGB or RGB with alpha."""
    return PIL.Image.fromarray(np.ascontiguousarray(samples))


def _shaped(image: PIL.Image.Image, request: ImageRequest) -> PIL.Image.Image:
    """Mirrored, then turned, then in the colours of the quality: the order of the standard."""
    if request.mirror:
        image = image.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)
    if request.turn:
        image = image.transpose(_TURNS[request.turn])
    if request.quality in ("gray", "bitonal"):
        image = image.convert("L")
    if request.quality == "bitonal":
        image = image.point(lambda value: 255 * (value > 127)).convert("1")
    return image


def _written(image: PIL.Image.Image, form: str, icc: bytes | None) -> bytes:
    file = io.BytesIO()
    profile = {"icc_profile": icc} if icc and image.mode in ("RGB", "RGBA") else {}
    if form == "png":
        # Speed before size: the answer mostly goes to the same machine.
        image.save(file, "PNG", compress_level=1, **profile)
    elif form == "webp":
        image.save(file, "WEBP", quality=90, **profile)
    else:
        flat = image if image.mode in ("L", "RGB") else _on_white(image)
        flat.save(file, "JPEG", quality=92, **profile)
    return file.getvalue()


def _on_white(image: PIL.Image.Image) -> PIL.Image.Image:
    """Without alpha, which JPEG has not."""
    seen = image.convert("RGBA")
    white = PIL.Image.new("RGBA", seen.size, "white")
    return PIL.Image.alpha_composite(white, seen).convert("RGB")
