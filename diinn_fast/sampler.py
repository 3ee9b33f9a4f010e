"""RGB at points of an image whose features are projected once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from diinn_fast.fused import Fused
from diinn_fast.geometry import area_ratio, check_size, local_offset, nearest_index
from diinn_fast.plain import Plain

Size = Sequence[int] | Sequence[Sequence[int]] | Tensor
"""An HR size (height, width), or one for each image, ``[B, 2]``."""


class Sampler:
    """Points of the images of some features, made by `ImplicitDecoder.sampler`.

    What depends on the features alone is computed once; every call decodes points from it.
    """

    def __init__(self, path: Fused | Plain, features: Tensor, form: str) -> None:
        self._path = path
        self._features = features
        self._source = None
        if isinstance(path, Fused):
            self._source = path.source(F.pad(features, (1, 1, 1, 1)), form)

    def __call__(self, coords: Tensor, size: Size) -> Tensor:
        """RGB ``[B, N, 3]`` at coords ``[B, N, 2]``, (y, x) in [-1, 1]; see
        `ImplicitDecoder.sample`.
        """
        self._check_points(coords)
        h, w = self._lr
        scaled = [
            (v + 1) * n for v, n in zip(coords.to(self._work).unbind(-1), (h, w), strict=True)
        ]
        index = [
            (v / 2).floor().long().clamp(0, n - 1) for v, n in zip(scaled, (h, w), strict=True)
        ]
        offset = torch.stack([v - (2 * i + 1) for v, i in zip(scaled, index, strict=True)], dim=-1)
        return self._decode(index[0] * w + index[1], offset, self._sizes(size))

    def pixels(self, yx: Tensor, size: Size) -> Tensor:
        """RGB ``[B, N, 3]`` of the HR pixels yx ``[B, N, 2]`` int64 (row, column); see
        `ImplicitDecoder.sample_pixels`.
        """
        self._check_points(yx)
        if yx.dtype != torch.int64:
            raise ValueError(
                f"yx must be int64 pixel positions, got {yx.dtype}; use sample() for coordinates"
            )
        sizes = self._sizes(size)
        _check_inside(yx, sizes)
        if len(sizes) == 1:
            return self._decode(*self._locate(yx, sizes[0]), sizes)
        parts = [self._locate(yx[n : n + 1], own) for n, own in enumerate(sizes)]
        pixel, offset = (torch.cat(part) for part in zip(*parts, strict=True))
        return self._decode(pixel, offset, sizes)

    @property
    def _lr(self) -> tuple[int, int]:
        return self._features.shape[-2], self._features.shape[-1]

    @property
    def _work(self) -> torch.dtype:
        return torch.float64 if self._features.dtype == torch.float64 else torch.float32

    def _locate(self, yx: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """LR pixel and offset of HR pixels of images of one size."""
        h, w = self._lr
        height, width = size
        rows = nearest_index(0, height, h, height, yx.device)
        columns = nearest_index(0, width, w, width, yx.device)
        dy = local_offset(0, height, rows, h, height, self._work)
        dx = local_offset(0, width, columns, w, width, self._work)
        # index_select knows no negative indices, which would wrap around
        y, x = (v.flatten() for v in yx.unbind(-1))
        pixel = rows.index_select(0, y) * w + columns.index_select(0, x)
        offset = torch.stack([dy.index_select(0, y), dx.index_select(0, x)], -1)
        return pixel.view(yx.shape[:-1]), offset.view(yx.shape)

    def _sizes(self, size: Size) -> list[tuple[int, int]]:
        """The HR size of each image, or of all of them, checked."""
        rows: list[Any] = size.tolist() if isinstance(size, Tensor) else list(size)
        if not any(isinstance(row, Sequence) or _is_vector(row) for row in rows):
            return [check_size(rows, self._lr)]
        if len(rows) != self._features.shape[0]:
            raise ValueError(
                f"size must be (height, width), or one for each of {self._features.shape[0]} images"
            )
        sizes = [check_size(row, self._lr) for row in rows]
        return sizes[:1] if len(set(sizes)) == 1 else sizes

    def _decode(self, pixel: Tensor, offset: Tensor, sizes: list[tuple[int, int]]) -> Tensor:
        if isinstance(self._path, Plain):
            ratios = [area_ratio(self._lr, size) for size in sizes]
            return self._path.points(self._features, pixel, offset, ratios)
        assert self._source is not None
        if len(sizes) == 1:
            return self._path.points(self._source, self._lr, sizes[0], pixel, offset)
        # the operator takes one size: images of the same size together
        parts = []
        order: list[int] = []
        for size in dict.fromkeys(sizes):
            images = [n for n, own in enumerate(sizes) if own == size]
            source = self._source._replace(values=self._source.values[images])
            parts.append(self._path.points(source, self._lr, size, pixel[images], offset[images]))
            order += images
        return torch.cat(parts)[[order.index(n) for n in range(len(sizes))]]

    def _check_points(self, points: Tensor) -> None:
        batch = self._features.shape[0]
        if points.ndim != 3 or points.shape[0] != batch or points.shape[-1] != 2:
            raise ValueError(f"points must be [{batch}, N, 2], got {list(points.shape)}")


def _is_vector(value: object) -> bool:
    return getattr(value, "ndim", 0) > 0


def _check_inside(yx: Tensor, sizes: list[tuple[int, int]]) -> None:
    """IndexError for pixels outside their image, whose positions would wrap around."""
    if yx.device.type != "cpu" or torch.compiler.is_compiling() or not yx.numel():
        return
    limits = torch.tensor(sizes)[:, None]
    if bool(((yx < 0) | (yx >= limits)).any()):
        raise IndexError(
            f"yx must be pixels inside the output, got rows and columns from {int(yx.min())} to "
            f"{int(yx.max())}"
        )
