"""The page that shows the pictures: its files, and its start with the first paint in it."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
from importlib.resources import files
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from diinn_fast.errors import Error
from diinn_fast.serve import iiif
from diinn_fast.serve.picture import Picture
from diinn_fast.serve.tiles import encode

log = logging.getLogger("diinn_fast")

FIRST_SIDE = 1024
"""Longer side, in pixels, of the picture that comes with the page."""

FIRST_PIXELS = 1 << 25
"""Most pixels of a picture that is read for it: larger ones would keep the first tiles waiting."""

FILES = {
    "start.js": ("start.js", "text/javascript; charset=utf-8"),
    "page.js": ("page.js", "text/javascript; charset=utf-8"),
    "openseadragon.js": ("openseadragon.min.js", "text/javascript; charset=utf-8"),
    "openseadragon-license.txt": ("openseadragon-LICENSE.txt", "text/plain; charset=utf-8"),
}
"""What the page asks for besides: name in the URL, file in ``page/``, media type."""

SAFE = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' data: blob:; worker-src 'self' blob:; "
        "style-src 'self' 'unsafe-inline'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


class Start:
    """index.html. All that its first paint needs is in it, so that no request has to follow: the
    style, what there is to see, and the first picture by bicubic interpolation.
    """

    def __init__(self) -> None:
        style = _read("page.css").decode()
        self._page = _read("index.html").decode().replace("{{style}}", style)
        self._first = ""

    async def prepare(self, picture: Picture, max_area: int) -> None:
        """Make the picture of the first paint; until then the page comes without."""
        if picture.width * picture.height > FIRST_PIXELS:
            return
        service = iiif.Service(picture.width, picture.height, FIRST_SIDE, max_area)
        size = f"^!{FIRST_SIDE},{FIRST_SIDE}"
        wanted = iiif.parse(service, "full", size, "0", "bicubic.webp")
        try:
            body = await run_in_threadpool(encode, picture, wanted, 1)
        except Error as error:  # its tiles will say so, too
            log.warning("%s: %s", picture.name, error)
            return
        data = base64.b64encode(body).decode()
        self._first = f'<img id="first" alt="" decoding="sync" src="data:image/webp;base64,{data}">'

    def answer(self, request: Request, facts: dict[str, Any]) -> Response:
        """The page, with ``facts`` for its script."""
        # Without <, the only letter by which a script's data could end it.
        listed = json.dumps(facts).replace("<", "\\u003c")
        page = self._page.replace("{{facts}}", listed).replace("{{first}}", self._first)
        return _tagged(request, page.encode(), "text/html; charset=utf-8")


def handler(name: str, kind: str) -> Any:
    """A handler that answers with one file of the page."""
    body = _read(name)

    async def answer(request: Request) -> Response:
        return _tagged(request, body, kind)

    return answer


def _read(name: str) -> bytes:
    return (files("diinn_fast.serve") / "page" / name).read_bytes()


def _tagged(request: Request, body: bytes, kind: str) -> Response:
    tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    headers = {**SAFE, "ETag": tag, "Cache-Control": "no-cache"}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(body, media_type=kind, headers=headers)
