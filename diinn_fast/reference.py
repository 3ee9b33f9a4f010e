"""DIINN's implicit decoder written literally: the oracle of the tests and "the official
formulation" of the benchmarks.

Equations are those of Nguyen & Beksi, "Single Image Super-Resolution via a Dual Interactive
Implicit Neural Network", WACV 2023 (arXiv 2210.12593). Every step of the definition is done at HR
size, as written: unfold, nearest upsampling, concatenation, 1x1 convolutions. Nothing on a user's
path imports this file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def nearest_index(n_in: int, n_out: int) -> Tensor:
    """The float32 index of ``nearest-exact`` for all n_out positions: int64 ``[n_out]``."""
    scale = torch.tensor(float(n_in), dtype=torch.float32) / n_out
    return torch.clamp(
        torch.floor((torch.arange(n_out, dtype=torch.float32) + 0.5) * scale).long(), max=n_in - 1
    )


def position(
    lr: Sequence[int], size: Sequence[int], rows: Tensor, columns: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Position p = (dy, dx, ratio) ``[3, rows, columns]`` of HR rows and columns, with their LR
    indices i and j.

    dy, dx: local coordinates in LR half-pixels, from integers; ratio: LR area over HR area.
    """
    h, w = lr
    height, width = size
    i = nearest_index(h, height)[rows]
    j = nearest_index(w, width)[columns]
    dy = ((2 * rows + 1) * h - (2 * i + 1) * height).to(dtype) / height
    dx = ((2 * columns + 1) * w - (2 * j + 1) * width).to(dtype) / width
    ratio = torch.full((len(rows), len(columns)), (h * w) / (height * width), dtype=dtype)
    return torch.stack([dy[:, None].expand_as(ratio), dx.expand_as(ratio), ratio]), i, j


def decode(
    weights: Mapping[str, Tensor],
    features: Tensor,
    size: Sequence[int],
    mode: int,
    window: Sequence[int] | None = None,
) -> Tensor:
    """RGB ``[B, 3, H, W]`` of features ``[B, C, h, w]`` at HR ``size``; ``window`` cuts (y0, y1,
    x0, x1) out of it.

    ``weights`` has the decoder's state_dict keys (``K.i.0``, ``Q.i.0``, ``last_layer``,
    ``first_layer.0``). The window is applied to the query grid before the network (mode 4 takes one
    more pixel around it), so that corners of outputs too large to hold can be checked.
    """
    batch, channels, h, w = features.shape
    height, width = size
    y0, y1, x0, x1 = window or (0, height, 0, width)
    halo = 1 if mode == 4 else 0  # the 3x3 last layer looks one HR pixel around
    top = max(y0 - halo, 0)
    bottom = min(y1 + halo, height)
    left = max(x0 - halo, 0)
    right = min(x1 + halo, width)

    # Positions and nearest indices of the grown window's rows and columns alone.
    p, i, j = position(
        (h, w), size, torch.arange(top, bottom), torch.arange(left, right), features.dtype
    )
    # content: 3x3 neighbourhood of the nearest feature, [B, 9C, rows, columns]
    unfolded = F.unfold(features, 3, padding=1).view(batch, channels * 9, h, w)
    x = unfolded.index_select(2, i.to(features.device)).index_select(3, j.to(features.device))
    rgb = network(weights, x, p.to(features.device).expand(batch, -1, -1, -1), mode)
    if mode == 4:
        rgb = _reflecting_last_layer(weights, rgb, (y0, y1, x0, x1), size)
    return rgb


def network(weights: Mapping[str, Tensor], x: Tensor, p: Tensor, mode: int) -> Tensor:
    """The dual interactive network on content x ``[B, 9C, H, W]`` and position p ``[B, 3, H, W]``.

    Returns RGB, or in mode 4 the last hidden layer q_3, whose 3x3 layer needs the neighbours.
    """
    conv = _conv1x1(weights)
    if "first_layer.0.weight" in weights:  # init_q, eq. 8-9: p' = sin(F p + f), x <- x * p'
        p = torch.sin(conv("first_layer.0", p))
        x = x * p
    k = torch.relu(conv("K.0.0", x))
    q = k * torch.sin(conv("Q.0.0", p))  # eq. 5, first layer
    layers = sum(name.startswith("Q.") and name.endswith(".0.weight") for name in weights)
    for n in range(1, layers):
        if mode == 1:  # eq. 6
            k = torch.relu(conv(f"K.{n}.0", k))
        elif mode == 2:  # eq. 7
            k = torch.relu(conv(f"K.{n}.0", torch.cat([k, x], dim=1)))
        else:  # eq. 4
            k = torch.relu(conv(f"K.{n}.0", torch.cat([q, x], dim=1)))
        q = k * torch.sin(conv(f"Q.{n}.0", q))  # eq. 5
    return q if mode == 4 else conv("last_layer", q)


def _conv1x1(weights: Mapping[str, Tensor]) -> Callable[[str, Tensor], Tensor]:
    def conv(name: str, value: Tensor) -> Tensor:
        return F.conv2d(value, weights[f"{name}.weight"], weights[f"{name}.bias"])

    return conv


def _reflecting_last_layer(
    weights: Mapping[str, Tensor], q: Tensor, window: Sequence[int], size: Sequence[int]
) -> Tensor:
    """Mode 4: 3x3 convolution on q with one pixel around ``window``, reflecting at the borders of
    the HR image only.
    """
    y0, y1, x0, x1 = window
    height, width = size
    pad = (int(x0 == 0), int(x1 == width), int(y0 == 0), int(y1 == height))
    return F.conv2d(
        F.pad(q, pad, mode="reflect"), weights["last_layer.weight"], weights["last_layer.bias"]
    )
