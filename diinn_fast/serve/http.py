"""The application behind a socket, by uvicorn, until a signal ends it."""

from __future__ import annotations

import socket
from types import FrameType

import uvicorn
from starlette.applications import Starlette

KEEP_ALIVE_SECONDS = 75
"""Longer than a busy machine's client takes from one request to the next."""

ENDING_SECONDS = 15
"""Longest time for what is being sent when the server is told to end: more than `Tiles` takes."""


def serve(app: Starlette, listening: socket.socket) -> None:
    """Answer requests until Ctrl-C or SIGTERM, which then take their usual course."""
    config = uvicorn.Config(
        app,
        log_level="warning",
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=ENDING_SECONDS,
    )
    _Server(config, app).run(sockets=[listening])


class _Server(uvicorn.Server):
    """uvicorn waits for all that was asked for: a long line would keep it for minutes."""

    def __init__(self, config: uvicorn.Config, app: Starlette) -> None:
        super().__init__(config)
        self._tiles = app.state.tiles

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal has come."""
        self._tiles.stop()
        super().handle_exit(sig, frame)
