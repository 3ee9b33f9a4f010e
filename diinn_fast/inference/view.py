"""Windows of a picture at any scale, on demand: what a viewer asks for."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from io import IOBase
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diinn_fast.errors import UpscaleError
from diinn_fast.geometry import Window, check_size, check_window, split
from diinn_fast.inference.bicubic import bicubic_range, resize_bicubic
from diinn_fast.inference.engine import Engine
from diinn_fast.inference.features import FeatureTiles
from diinn_fast.inference.identity import weights_digest
from diinn_fast.inference.neutral import source_is_neutral
from diinn_fast.inference.ranges import Asked, asked_of
from diinn_fast.inference.reduced import needs_network, reduced
from diinn_fast.inference.scaled import Scaled
from diinn_fast.inference.sources import Source, bits_of
from diinn_fast.inference.sources.inpainted import inpainted
from diinn_fast.inference.sources.steady import SteadySource
from diinn_fast.inference.windows import copy_samples, put, write_samples

STRIP_PIXELS = 1 << 19
"""Output pixels decoded at a time."""

BICUBIC_PIXELS = 1 << 24
"""Most LR pixels that bicubic reads at a time."""


class View:
    """A picture and a model; `render` gives windows. Features are kept per tile of the LR picture,
    whatever the size.

    A file on disk must stay as it is: once it is written into, ImageError says so.
    Any number of threads may use it: a tile is encoded once. It can be pickled if the model was
    given by name or file: what is sent are the names of picture and model (an array or a PIL image
    as it is), never weights or features, and both are checked to be the same where they arrive.

    Attributes:
        shape: (height, width) of the LR picture.
        channels: 1 grey, 2 grey + alpha, 3 RGB, 4 RGB + alpha.
        dtype: of the samples, the picture's: uint8, uint16, or float32.
        range: the samples that are black and white to the network, as parts of what they can be.
        icc: its colour profile, or None.
    """

    def __init__(
        self, engine: Engine, source: Source, max_features: int, picture: Any = None
    ) -> None:
        engine = engine.for_bits(bits_of(source))
        source = inpainted(SteadySource(source))
        self._engine = engine
        self._source = source
        self._picture = picture
        self._max_features = max_features
        # Encoding costs most: features of what was shown are kept for the next window.
        self._features = FeatureTiles(engine, max_features)
        self._neutral: bool | None = None  # not known yet
        self._neutral_lock = threading.Lock()
        self._worker = ThreadPoolExecutor(1, "diinn-view")  # starts with its first task
        self.shape = source.height, source.width
        self.channels = (1 if source.grey else 3) + source.alpha
        self.dtype = np.dtype(source.dtype)
        self.range = source.range
        self.icc = source.metadata.icc

    @property
    def encoded(self) -> int:
        """Tiles encoded until now."""
        return self._features.encoded

    @property
    def identity(self) -> str:
        """Changes when the picture, the weights or the arithmetic do."""
        engine = self._engine
        computed = [str(engine.dtype), engine.device.type, engine.backend]
        computed += engine.rounding(engine.backend)
        return f"{self._source.identity} {weights_digest(engine.model)} {' '.join(computed)}"

    def render(self, window: Sequence[int] | None, size: Sequence[int]) -> np.ndarray:
        """Samples ``[rows, columns]`` (grey) or ``[rows, columns, C]`` of a window of the picture
        at size (H, W).

        ``window`` is (y0, y1, x0, x1) in pixels of that size, None all of it. The pixels are those
        of the whole. An axis that gets shorter is reduced by antialiased bicubic interpolation.
        """
        hr = self.check_size(size)
        cut = self._check_window(window, hr)
        samples = np.empty((*cut.shape, self.channels), self.dtype)
        source = reduced(self._source, hr)
        lr = source.height, source.width
        # Parts of a tile's extent, as far as their pixels stay few.
        scale = max(out / n for out, n in zip(hr, lr, strict=True))
        rows, columns = (
            max(1, side * out // n)
            for side, out, n in zip(self._features.sides(lr, scale), hr, lr, strict=True)
        )
        columns = min(columns, cut.shape[1], STRIP_PIXELS)
        rows = min(rows, max(1, STRIP_PIXELS // columns))
        for part in split(cut, rows, columns):
            y = part.y0 - cut.y0
            x = part.x0 - cut.x0
            out = samples[y : y + part.shape[0], x : x + part.shape[1]]
            self._render(source, part, hr, scale, out)
        return samples[..., 0] if self.channels == 1 else samples

    def bicubic(self, window: Sequence[int] | None, size: Sequence[int]) -> np.ndarray:
        """The same window by bicubic interpolation, without the network: a first paint.

        It waits for no `render`; antialiased where the picture gets smaller.
        """
        hr = self.check_size(size)
        cut = self._check_window(window, hr)
        samples = np.empty((*cut.shape, self.channels), self.dtype)
        # Strips of rows, each of which needs few pixels of the picture.
        needed = bicubic_range(cut, self.shape, hr).shape
        rows = max(1, cut.shape[0] * BICUBIC_PIXELS // max(BICUBIC_PIXELS, needed[0] * needed[1]))
        for strip in split(cut, rows, cut.shape[1]):
            needed_strip = bicubic_range(strip, self.shape, hr)
            rgb, alpha = self._source.read(*needed_strip)
            colours = rgb[:1] if self._source.grey else rgb
            seen = colours if alpha is None else torch.cat([colours, alpha])
            tile = self.shape, (needed_strip.y0, needed_strip.x0)
            resized = resize_bicubic(seen, hr, strip, tile)
            count = len(colours)
            rows_of_strip = samples[strip.y0 - cut.y0 : strip.y1 - cut.y0]
            opacity = None if alpha is None else resized[count:]
            put(rows_of_strip, self._source, resized[:count], opacity)
        return samples[..., 0] if self.channels == 1 else samples

    def submit(self, window: Sequence[int] | None, size: Sequence[int]) -> Future[np.ndarray]:
        """`render` in the background, one after the other: a future of the samples.

        Show `bicubic` meanwhile; ``cancel()`` it when its window has left the screen.
        """
        return self._worker.submit(self.render, window, size)

    def at(self, size: Sequence[int]) -> Scaled:
        """The picture at size (H, W) as an array that computes what is sliced out of it."""
        return Scaled(self, size)

    def check_size(self, size: Sequence[int]) -> tuple[int, int]:
        """(H, W) as integers; UpscaleError for a size that cannot be rendered."""
        try:
            hr = check_size(size, self.shape)
        except ValueError as error:
            raise UpscaleError(str(error)) from None
        self._engine.check_sizes(self.shape, hr)
        return hr

    def close(self) -> None:
        """Forget the features, cancel what is submitted and not begun, and release the file."""
        self._worker.shutdown(cancel_futures=True)
        self._features.clear()
        self._source.close()

    def __enter__(self) -> View:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        if self._picture is None or isinstance(self._picture, IOBase):
            raise UpscaleError(
                "a view of an open file cannot be sent to another process: open it by its path"
            )
        picture = self._picture
        if isinstance(picture, (str, os.PathLike)):
            picture = Path(picture).resolve()
        asked = asked_of(self._source)
        return _reopened, (self._engine, picture, self._max_features, asked, self.identity)

    def _check_window(self, window: Sequence[int] | None, hr: tuple[int, int]) -> Window:
        try:
            return check_window(window, hr)
        except ValueError as error:
            raise UpscaleError(str(error)) from None

    def _render(
        self, source: Source, window: Window, hr: tuple[int, int], scale: float, out: np.ndarray
    ) -> None:
        if not needs_network(self.shape, hr):
            copy_samples(out, source, window)
            return
        lr = source.height, source.width
        needed = self._engine.model.decoder.lr_window(window, lr, hr)
        features = self._features.window(source, needed, scale)
        origin = needed.y0, needed.x0
        neutral = self._is_neutral()
        write_samples(out, self._engine, source, features, origin, window, hr, neutral)

    def _is_neutral(self) -> bool:
        with self._neutral_lock:
            if self._neutral is None:
                self._neutral = source_is_neutral(self._source)
            return self._neutral


def _reopened(engine: Any, picture: Any, max_features: int, asked: Asked, identity: str) -> View:
    """The view in another process; UpscaleError if picture or weights are not the same there."""
    view: View = engine.open(picture, max_features=max_features, range=asked)
    if view.identity != identity:
        view.close()
        raise UpscaleError(
            "picture, weights or device are not those that were opened: give every machine the "
            "same files under the same paths, with their times (cp -p, rsync -t), and name the "
            "device"
        )
    return view
