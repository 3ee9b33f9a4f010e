"""The thread that writes blocks while the next ones are computed."""

from __future__ import annotations

import queue
import threading
import time
from types import TracebackType

import numpy as np

from diinn_fast.geometry import Window
from diinn_fast.inference.plan import QUEUE
from diinn_fast.inference.progress import Bar
from diinn_fast.inference.rendering.journal import Block, Journal
from diinn_fast.inference.sinks import Sink

FLUSH_SECONDS = 3.0
"""How much work a power cut or kill may cost; what is done is made durable this often."""


class Writer:
    """A context in which `put` hands blocks over; at its end, also on errors, all of them are
    written and recorded.
    """

    def __init__(self, sink: Sink, journal: Journal, bar: Bar) -> None:
        self.given: set[Block] = set()
        self._sink = sink
        self._journal = journal
        self._bar = bar
        self._queue: queue.Queue[tuple[Block, Window, np.ndarray] | None] = queue.Queue(QUEUE)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)

    def __enter__(self) -> Writer:
        self._thread.start()
        return self

    def put(self, block: Block, window: Window, samples: np.ndarray) -> None:
        """Wait for a place in the queue. Raises what the writer met."""
        if self._error is not None:
            raise self._error
        self._queue.put((block, window, samples))
        self.given.add(block)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._queue.put(None)
        self._thread.join()
        self._journal.close()
        if self._error is not None and (error is None or error is self._error):
            raise self._error

    def _run(self) -> None:
        pending: list[Block] = []
        flushed = time.monotonic()
        while (item := self._queue.get()) is not None:
            if self._error is not None:
                continue  # the producer must not wait for ever
            block, window, samples = item
            try:
                self._sink.write(window.y0, window.x0, samples)
                pending.append(block)
                # Flushing is slow and loses little work if it is rare: every few seconds.
                if time.monotonic() - flushed > FLUSH_SECONDS:
                    self._commit(pending)
                    flushed = time.monotonic()
            except BaseException as error:
                self._error = error
            self._bar.update(window.shape[0] * window.shape[1])
            del item, samples
        try:
            self._commit(pending)
        except BaseException as error:
            self._error = self._error or error

    def _commit(self, pending: list[Block]) -> None:
        self._sink.flush()
        self._journal.add(pending)
        pending.clear()
