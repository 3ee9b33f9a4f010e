"""The ASGI application: routes, headers, and what goes wrong as a status.

``/`` is the page. Each picture has two image services: ``/iiif/NAME`` is its own grid, and
``/iiif/NAME@64`` the same picture on a grid 64 times larger, for viewers that stop at 100 %.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from diinn_fast import __version__
from diinn_fast.errors import Error, ImageError, UpscaleError
from diinn_fast.serve import iiif, site
from diinn_fast.serve.disk import DiskCache
from diinn_fast.serve.gallery import MAX_FILE, Gallery, Opener, too_large
from diinn_fast.serve.picture import MAX_SCALE, Picture
from diinn_fast.serve.tiles import BusyError, GoneError, Tiles, encode, is_quick

log = logging.getLogger("diinn_fast")

MAX_AREA = 1 << 22
"""Most pixels of one answer."""

TAKING_SECONDS = 60
"""Longest time that a dropped file may take to arrive and be decoded."""


def make_app(
    pictures: Sequence[Picture],
    *,
    max_cache: int = 256 << 20,
    disk: DiskCache | None = None,
    opener: Opener | None = None,
    hosts: Sequence[str] = ("127.0.0.1", "localhost"),
    origins: Sequence[str] = (),
) -> Starlette:
    """The application that serves pictures; it closes them when it ends.

    Args:
        pictures: what is served, under their names; nothing else can be asked for.
        max_cache: most bytes of encoded answers to keep in memory.
        disk: where those of the network are kept, too.
        opener: makes the view of a file dropped onto the page; None: no file is taken.
        hosts: names under which the server may be addressed; a page of another site that has its
            own name resolved to this machine is refused. ``["*"]`` for all.
        origins: sites whose pages may read the answers (CORS). ``["*"]`` for all.
    """
    server = _Server(Gallery(pictures, opener), Tiles(max_cache, disk))
    middleware = [Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)]
    if origins:
        exposed = ["ETag", "Link"]
        middleware.append(
            Middleware(CORSMiddleware, allow_origins=list(origins), expose_headers=exposed)
        )

    @asynccontextmanager
    # Pictures are closed when the server ends, however it ends.
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        preparing = asyncio.create_task(server.prepare())
        yield
        await preparing
        server.tiles.close()
        server.gallery.close()

    routes = [
        Route("/pictures.json", server.pictures),
        Route("/pictures", server.drop, methods=["POST"]),
        Route("/iiif/{id}", server.redirect),
        Route("/iiif/{id}/info.json", server.info),
        Route("/iiif/{id}/{region}/{size}/{rotation}/{quality_format}", server.image),
        Route("/", server.page),
        *(Route(f"/{name}", site.handler(*file)) for name, file in site.FILES.items()),
    ]
    app = Starlette(routes=routes, middleware=middleware, lifespan=lifespan)
    app.state.tiles = server.tiles
    return app


class _Server:
    """The handlers."""

    def __init__(self, gallery: Gallery, tiles: Tiles) -> None:
        self.gallery = gallery
        self.tiles = tiles
        self._start = site.Start()
        self._taking = asyncio.Lock()

    async def prepare(self) -> None:
        """Make what the page shows first."""
        if picture := next(iter(self.gallery), None):
            await self._start.prepare(picture, MAX_AREA)

    async def page(self, request: Request) -> Response:
        return self._start.answer(request, self._facts())

    async def pictures(self, request: Request) -> Response:
        """What there is to see."""
        return _json(self._facts(), "application/json")

    def _facts(self) -> dict[str, Any]:
        return {
            "pictures": [_facts(picture) for picture in self.gallery],
            "zoom": MAX_SCALE,
            "tile": iiif.TILE,
            "maxArea": MAX_AREA,
            "drops": self.gallery.opener is not None,
            "maxFile": MAX_FILE,
            "tooLarge": too_large(),
        }

    async def drop(self, request: Request) -> Response:
        """Take a picture that was dropped onto the page: the request's body is its file."""
        opener = self.gallery.opener
        if opener is None:
            raise HTTPException(403, "this server takes no pictures")
        # A page of another site may send what it likes, but not without naming itself.
        origin = request.headers.get("origin")
        if origin is not None and origin != str(request.base_url).rstrip("/"):
            raise HTTPException(403, "only this server's own page may send pictures")
        # One at a time, so that their memory is bounded.
        try:
            async with asyncio.timeout(TAKING_SECONDS), self._taking:
                data = await _body(request)
                view = await run_in_threadpool(opener, data)
        except ClientDisconnect:
            return Response(status_code=499)
        except TimeoutError:
            raise HTTPException(408, "the file did not arrive in time") from None
        except Error as error:
            raise HTTPException(415, str(error)) from None
        picture = self.gallery.drop(request.query_params.get("title", ""), view)
        return _json(_facts(picture), "application/json")

    async def redirect(self, request: Request) -> Response:
        self._service(request)
        return RedirectResponse(f"{_url(request)}/info.json", 303)

    async def info(self, request: Request) -> Response:
        _, _, service = self._service(request)
        linked = "application/ld+json" in request.headers.get("accept", "")
        profile = f'application/ld+json;profile="{iiif.CONTEXT}"'
        response = _json(service.info(_url(request)), profile if linked else "application/json")
        response.headers["Link"] = f'<{iiif.PROFILE}>;rel="profile"'
        response.headers["Vary"] = "Accept"
        return response

    async def image(self, request: Request) -> Response:
        picture, zoom, service = self._service(request)
        words = (request.path_params[k] for k in ("region", "size", "rotation", "quality_format"))
        try:
            wanted = iiif.parse(service, *words)
        except iiif.BadRequestError as error:
            raise HTTPException(400, str(error)) from None
        path = wanted.path(service)
        # One answer has one key, whatever the words that asked for it.
        key = _digest(f"{__version__} {picture.identity} @{zoom}/{path}")
        tag = f'"{key}"'
        links = f'<{iiif.PROFILE}>;rel="profile", <{_url(request)}/{path}>;rel="canonical"'
        headers = {"Link": links, "ETag": tag, "Cache-Control": "private, max-age=3600"}
        # The browser has it already.
        if tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        try:
            body = await self.tiles.get(
                key,
                lambda: encode(picture, wanted, zoom),
                is_quick(picture, wanted, zoom),
                lambda: self._is_useless(request, picture),
            )
        except BusyError:
            raise HTTPException(503, "busy", {"Retry-After": "5"}) from None
        except GoneError:
            self._service(request)  # the picture may have made room for another one
            return Response(status_code=499)
        except UpscaleError as error:
            raise HTTPException(400, str(error)) from None
        except ImageError as error:
            # The sentence may name a path, which is nobody's business but the server's.
            log.warning("%s: %s", picture.name, error)
            raise HTTPException(503, "the picture's file cannot be read, or has changed") from None
        headers["X-Content-Type-Options"] = "nosniff"
        return Response(body, media_type=iiif.FORMATS[wanted.format], headers=headers)

    async def _is_useless(self, request: Request, picture: Picture) -> bool:
        """Whether an answer would come too late: for a client that left, of a picture that did."""
        return self.gallery.find(picture.name) is not picture or await request.is_disconnected()

    def _service(self, request: Request) -> tuple[Picture, int, iiif.Service]:
        """Picture, enlargement of the grid, and grid of the service that a URL names."""
        name, at, zoom = request.path_params["id"].partition("@")
        picture = self.gallery.find(name)
        if picture is None or (at and zoom != str(MAX_SCALE)):
            raise HTTPException(404, "no such picture")
        factor = MAX_SCALE if at else 1
        width = picture.width * factor
        height = picture.height * factor
        return picture, factor, iiif.Service(width, height, MAX_SCALE // factor, MAX_AREA)


def _url(request: Request) -> str:
    return f"{str(request.base_url).rstrip('/')}/iiif/{request.path_params['id']}"


def _json(body: dict[str, Any], kind: str) -> Response:
    return Response(json.dumps(body, indent=1), headers={"Content-Type": kind})


def _facts(picture: Picture) -> dict[str, Any]:
    return {
        "name": picture.name,
        "width": picture.width,
        "height": picture.height,
        "alpha": picture.alpha,
    }


async def _body(request: Request) -> bytes:
    """The body of a request, refused as soon as it is too long."""
    data = bytearray()
    async for part in request.stream():
        data += part
        if len(data) > MAX_FILE:
            raise HTTPException(413, too_large())
    return bytes(data)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]
