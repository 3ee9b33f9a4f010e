"""DIINN's implicit decoder: features and an HR size to RGB, by the decode operator.

Parameters and their names are the official ones, so that official checkpoints load; the computation
is not: the content products are done once per LR pixel (``project``), and one operator does the
rest per query.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diinn_fast.backends.eager import linear
from diinn_fast.formulation import Formulation, formulation
from diinn_fast.geometry import (
    Window,
    check_size,
    check_window,
    local_offset,
    lr_range,
    nearest_index,
)
from diinn_fast.ops import conv3x3, decode
from diinn_fast.packing import Layer, Layers, pack, pack_content
from diinn_fast.problem import ContentWeights, Weights

Packed = TypeVar("Packed", Weights, ContentWeights)

BAND_BYTES = 256 << 20
"""Most content (bytes) that inference holds at a time; larger images are projected in bands of LR
rows.
"""


class Sine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x)


def _layer(in_channels: int, out_channels: int, activation: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1), activation)


class ImplicitDecoder(nn.Module):
    """Implicit decoder of DIINN (Nguyen & Beksi, WACV 2023, arXiv 2210.12593), modes 1 to 4.

    For a query with nearest-feature neighbourhood x (3x3xC) and position p = (dy, dx, area ratio),
    with q_0 = k_0 sin(Q_0 p) and k_0 = relu(K_0 x): q_i = k_i sin(Q_i q_{i-1}) and

    - mode 1: k_i = relu(K_i k_{i-1}) (eq. 6);  mode 2: k_i = relu(K_i [k_{i-1}, x]) (eq. 7);
    - mode 3: k_i = relu(K_i [q_{i-1}, x]) (eq. 4);  mode 4: as 3, the last layer a 3x3 convolution
      on the HR grid.

    ``init_q`` puts p' = sin(F p + f) in p's place and x * p' in x's (eq. 8-9).
    """

    def __init__(
        self,
        in_channels: int = 64,
        hidden_dims: Sequence[int] = (256, 256, 256, 256),
        mode: int = 1,
        init_q: bool = False,
    ) -> None:
        super().__init__()
        plan = formulation(mode, init_q)
        if len(hidden_dims) < 2 or len(set(hidden_dims)) != 1:
            raise ValueError(
                "hidden_dims must be equal widths, two or more, such as [256] * 4: got "
                f"{list(hidden_dims)}"
            )
        self.in_channels = in_channels
        self.width = width = hidden_dims[0]
        self.mode = plan.mode
        self.init_q = plan.init_q
        content = in_channels * 9
        if init_q:
            self.first_layer = _layer(3, content, Sine())
        inputs = range(len(hidden_dims))
        self.K = nn.ModuleList(
            _layer(plan.modulation_inputs(i, width, content), width, nn.ReLU()) for i in inputs
        )
        self.Q = nn.ModuleList(
            _layer(width if i else (content if init_q else 3), width, Sine()) for i in inputs
        )
        if plan.needs_grid:
            self.last_layer = nn.Conv2d(width, 3, 3, padding=1, padding_mode="reflect")
        else:
            self.last_layer = nn.Conv2d(width, 3, 1)

    @property
    def formulation(self) -> Formulation:
        """What this decoder's mode computes."""
        return formulation(self.mode, self.init_q)

    def forward(
        self,
        features: Tensor,
        size: Sequence[int],
        bsize: int | None = None,
        *,
        window: Sequence[int] | None = None,
        tile: tuple[tuple[int, int], tuple[int, int]] | None = None,
        backend: str | None = None,
    ) -> Tensor:
        """RGB ``[B, 3, H, W]`` of features ``[B, C, h, w]`` at HR ``size`` (H, W).

        ``window`` (y0, y1, x0, x1) returns exactly that part of the whole,
        ``[B, 3, y1-y0, x1-x0]``. ``tile`` ((h, w), (i, j)) says that the features are a part of
        those of an image of h x w, from row i and column j on; it must hold the `lr_window` of the
        window. ``bsize`` limits the queries processed at a time. Output dtype: autocast's, else the
        input's.
        """
        features = self._check_features(features)
        lr, origin = tile or ((features.shape[-2], features.shape[-1]), (0, 0))
        size = check_size(size, lr)
        cut = check_window(window, size)
        if tile is not None:
            self._check_tile(features, lr, origin, size, cut)
        if bsize is not None and bsize < 1:
            raise ValueError(f"bsize must be at least 1 query, got {bsize}")
        if min(size) < self.formulation.least_side:
            raise ValueError(
                f"mode {self.mode} needs an output of at least 2x2 pixels, got {size[0]}x{size[1]}"
            )
        if not self._needs_grad(features):
            return self._decode_in_bands(features, lr, origin, size, cut, bsize or 0, backend)
        return self._decode_window(features, lr, origin, size, cut, bsize or 0, backend)

    def lr_window(self, window: Sequence[int], lr: tuple[int, int], size: Sequence[int]) -> Window:
        """Rows and columns of the features of an image of size ``lr`` that decoding ``window``
        looks at.
        """
        size = check_size(size, lr)
        rows, columns = self._lr_ranges(check_window(window, size), lr, size)
        top = max(rows.start - 1, 0)
        left = max(columns.start - 1, 0)
        return Window(top, min(rows.stop + 1, lr[0]), left, min(columns.stop + 1, lr[1]))

    def sample(
        self, features: Tensor, coords: Tensor, size: Sequence[int], *, backend: str | None = None
    ) -> Tensor:
        """RGB ``[B, N, 3]`` at coords ``[B, N, 2]``, (y, x) in [-1, 1], as if on an HR grid of
        ``size``.

        The nearest feature is ``clamp(floor((v + 1) / 2 * n), 0, n - 1)``, offsets are
        ``(v + 1) * n - (2i + 1)``; the area ratio comes from ``size``. Mode 4 is refused: its last
        layer needs a grid.
        """
        features = self._check_features(features)
        h, w = features.shape[-2:]
        self._check_points(coords, features)
        work = torch.float64 if features.dtype == torch.float64 else torch.float32
        scaled = [(v + 1) * n for v, n in zip(coords.to(work).unbind(-1), (h, w), strict=True)]
        index = [
            (v / 2).floor().long().clamp(0, n - 1) for v, n in zip(scaled, (h, w), strict=True)
        ]
        offset = torch.stack([v - (2 * i + 1) for v, i in zip(scaled, index, strict=True)], dim=-1)
        return self._decode_points(
            features, torch.stack(index, dim=-1), offset, check_size(size, (h, w)), backend
        )

    def sample_pixels(
        self, features: Tensor, yx: Tensor, size: Sequence[int], *, backend: str | None = None
    ) -> Tensor:
        """RGB ``[B, N, 3]`` of the HR pixels yx ``[B, N, 2]`` int64 (row, column): equals
        ``forward`` at those.
        """
        features = self._check_features(features)
        lr = features.shape[-2], features.shape[-1]
        height, width = check_size(size, lr)
        self._check_points(yx, features)
        if yx.dtype != torch.int64:
            raise ValueError(
                f"yx must be int64 pixel positions, got {yx.dtype}; use sample() for coordinates"
            )
        work = torch.float64 if features.dtype == torch.float64 else torch.float32
        rows = nearest_index(0, height, lr[0], height, yx.device)
        columns = nearest_index(0, width, lr[1], width, yx.device)
        dy = local_offset(0, height, rows, lr[0], height, work)
        dx = local_offset(0, width, columns, lr[1], width, work)
        y, x = yx.unbind(-1)
        index = torch.stack([rows[y], columns[x]], -1)
        offset = torch.stack([dy[y], dx[x]], -1)
        return self._decode_points(features, index, offset, (height, width), backend)

    # -- the two forms -----------------------------------------------------------------------------

    def project(self, padded: Tensor, backend: str | None = None) -> Tensor:
        """LR-size source of the decode operator, ``[B, h, w, L*H]``, from features with one pixel
        of padding.

        Modes 3 and 4: the content products ``K_i^x x + bias`` of all layers, a 3x3 convolution;
        modes 1 and 2: the whole modulation branch, which depends on the LR pixel only. Not for
        init_q.
        """
        layers = self.layers()
        weights = self._cast(pack_content(layers, self.mode), padded.dtype)
        content = _conv3x3(
            padded, weights.content, weights.content_bias[: len(weights.content)], backend
        )
        if self.formulation.projected_form == "content":
            return content
        width = self.width
        k = torch.relu(content[..., :width])
        branch = [k]
        for n, layer in enumerate(layers.modulation[1:], start=1):
            recurrent = layer.matrix[:, :width].to(padded.dtype)
            if self.formulation.content:
                k = linear(k, recurrent) + content[..., n * width : (n + 1) * width]
            else:
                k = linear(k, recurrent) + layer.bias.to(padded.dtype)
            k = torch.relu(k)
            branch.append(k)
        return torch.cat(branch, dim=-1)

    def layers(self) -> Layers:
        """The values of all layers now."""
        return Layers(
            modulation=[_read(layer) for layer in self.K],
            synthesis=[_read(layer) for layer in self.Q],
            last=Layer.read(self.last_layer),
            first=_read(self.first_layer) if self.init_q else None,
        )

    def _lr_ranges(
        self, window: Window, lr: tuple[int, int], size: tuple[int, int]
    ) -> tuple[slice, slice]:
        """LR rows and columns that are nearest to a window's queries."""
        y0, y1, x0, x1 = _grow(window, size) if self.formulation.needs_grid else window
        return slice(*lr_range(y0, y1, lr[0], size[0])), slice(*lr_range(x0, x1, lr[1], size[1]))

    def _source(
        self, padded: Tensor, form: str, backend: str | None
    ) -> tuple[Tensor, list[Tensor]]:
        """Source and weights of the operator in a form, for features with one pixel around."""
        padded = padded.permute(0, 2, 3, 1).contiguous()
        if form == "direct":
            layers = self.layers()
            content = self._cast(pack_content(layers, self.mode), padded.dtype)
            weights = self._cast(pack(layers, self.mode, modulation=False), padded.dtype)
            return padded, [*weights, *(v for v in content if v is not None)]
        weights = self._cast(
            pack(self.layers(), self.mode, modulation=form == "modulation"), padded.dtype
        )
        return self.project(padded, backend), list(weights)

    def _decode_window(
        self,
        features: Tensor,
        lr: tuple[int, int],
        origin: tuple[int, int],
        size: tuple[int, int],
        window: Window,
        chunk: int,
        backend: str | None,
    ) -> Tensor:
        form = self.formulation.form(lr, size[0] * size[1])
        grown = _grow(window, size) if self.formulation.needs_grid else window
        rows, columns = self._lr_ranges(window, lr, size)
        padded = _with_border(features, rows, columns, lr, origin)
        source, weights = self._source(padded, form, backend)
        out = decode(
            source,
            weights,
            form=form,
            mode=self.mode,
            lr=lr,
            origin=(rows.start, columns.start),
            size=size,
            window=grown,
            chunk=chunk,
            backend=backend,
        )
        return _sum_taps(out, window, size) if self.formulation.needs_grid else out

    def _decode_in_bands(
        self,
        features: Tensor,
        lr: tuple[int, int],
        origin: tuple[int, int],
        size: tuple[int, int],
        window: Window,
        chunk: int,
        backend: str | None,
    ) -> Tensor:
        """Without gradients: in bands of rows whose content (and, in mode 4, nine taps) stay under
        BAND_BYTES.
        """
        batch = features.shape[0]
        columns = self._lr_ranges(window, lr, size)[1]
        item = max(features.element_size(), 4)  # 16-bit content may be computed with in float32
        content = (
            batch * (columns.stop - columns.start) * len(self.K) * self.width * item
        )  # of an LR row
        row_bytes = content * lr[0] / size[0]
        if self.formulation.needs_grid:
            row_bytes += batch * 27 * (window.x1 - window.x0) * item
        step = max(1, int(BAND_BYTES / row_bytes))
        if step >= window.y1 - window.y0:
            return self._decode_window(features, lr, origin, size, window, chunk, backend)
        out = features.new_empty(batch, 3, window.y1 - window.y0, window.x1 - window.x0)
        for y in range(window.y0, window.y1, step):
            band = Window(y, min(y + step, window.y1), window.x0, window.x1)
            part = self._decode_window(features, lr, origin, size, band, chunk, backend)
            out[:, :, y - window.y0 : band.y1 - window.y0] = part
        return out

    def _decode_points(
        self,
        features: Tensor,
        index: Tensor,
        offset: Tensor,
        size: tuple[int, int],
        backend: str | None,
    ) -> Tensor:
        h, w = features.shape[-2:]
        form = self.formulation.form((h, w), index.shape[1])
        source, weights = self._source(F.pad(features, (1, 1, 1, 1)), form, backend)
        pixel = index[..., 0] * w + index[..., 1]
        return decode(
            source,
            weights,
            form=form,
            mode=self.mode,
            lr=(h, w),
            size=size,
            index=pixel.contiguous(),
            offset=offset.contiguous(),
            backend=backend,
        )

    # -- dtypes and checks -------------------------------------------------------------------------

    def _cast(self, weights: Packed, dtype: torch.dtype) -> Packed:
        """Matrices in the operator's dtype; everything that feeds a sine argument or a sum at least
        in float32.
        """
        exact = dtype if dtype == torch.float64 else torch.float32
        matrices = ("hidden", "last", "content")
        return weights._replace(
            **{
                name: v.to(dtype if name in matrices else exact)
                for name, v in weights._asdict().items()
                if v is not None
            }
        )

    def _check_features(self, features: Tensor) -> Tensor:
        if features.ndim != 4 or features.shape[1] != self.in_channels:
            raise ValueError(
                f"features must be [B, {self.in_channels}, h, w], got {list(features.shape)}"
            )
        if not features.is_floating_point():
            raise ValueError(f"features must be floating point, got {features.dtype}")
        device = features.device.type
        if torch.is_autocast_enabled(device) and features.dtype != torch.float64:
            return features.to(torch.get_autocast_dtype(device))
        parameter = self.last_layer.weight
        if parameter.dtype != features.dtype:
            raise ValueError(
                f"features are {features.dtype}, the decoder is {parameter.dtype}: convert one of "
                "them or use autocast"
            )
        return features

    def _check_tile(
        self,
        features: Tensor,
        lr: tuple[int, int],
        origin: tuple[int, int],
        size: tuple[int, int],
        window: Window,
    ) -> None:
        top, bottom, left, right = self.lr_window(window, lr, size)
        i, j, (rows, columns) = *origin, features.shape[-2:]
        if not (i <= top and bottom <= i + rows and j <= left and right <= j + columns):
            raise ValueError(
                f"window {tuple(window)} needs features of LR rows {top} to {bottom} and columns "
                f"{left} to {right}, "
                f"the tile has {i} to {i + rows} and {j} to {j + columns}"
            )

    def _check_points(self, points: Tensor, features: Tensor) -> None:
        if self.formulation.needs_grid:
            raise ValueError(
                f"mode {self.mode} cannot be sampled at points: its last layer needs the whole grid"
            )
        if points.ndim != 3 or points.shape[0] != features.shape[0] or points.shape[-1] != 2:
            raise ValueError(
                f"points must be [{features.shape[0]}, N, 2], got {list(points.shape)}"
            )

    def _needs_grad(self, features: Tensor) -> bool:
        return torch.is_grad_enabled() and (
            features.requires_grad or any(p.requires_grad for p in self.parameters())
        )


def _read(layer: nn.Module) -> Layer:
    """The 1x1 convolution of a (convolution, activation) layer."""
    assert isinstance(layer, nn.Sequential) and isinstance(layer[0], nn.Conv2d)
    return Layer.read(layer[0])


def _conv3x3(padded: Tensor, weight: Tensor, bias: Tensor, backend: str | None) -> Tensor:
    """3x3 convolution of ``[B, h+2, w+2, C]`` by weight ``[out, 9C]`` (columns c*9 + tap):
    ``[B, h, w, out]``.

    For inference on the CPU by an operator whose sums do not depend on the shape; those of the
    convolution library do, and windows would differ in the last bit.
    """
    if padded.device.type == "cpu" and not torch.is_grad_enabled():
        return conv3x3(padded, weight, bias.to(padded.dtype), backend)
    kernel = weight.view(-1, padded.shape[-1], 3, 3)
    return (
        F.conv2d(padded.permute(0, 3, 1, 2), kernel, bias.to(padded.dtype))
        .permute(0, 2, 3, 1)
        .contiguous()
    )


def _with_border(
    features: Tensor, rows: slice, columns: slice, lr: tuple[int, int], origin: tuple[int, int]
) -> Tensor:
    """The image's ``features[..., rows, columns]`` with one pixel around: its neighbours, zeros
    outside the image.

    ``features`` are those of the image of size ``lr`` from ``origin`` on.
    """
    h, w = lr
    i, j = origin
    top = max(rows.start - 1, 0)
    left = max(columns.start - 1, 0)
    bottom = min(rows.stop + 1, h)
    right = min(columns.stop + 1, w)
    pad = (
        int(columns.start == 0),
        int(columns.stop == w),
        int(rows.start == 0),
        int(rows.stop == h),
    )
    return F.pad(features[:, :, top - i : bottom - i, left - j : right - j], pad)


def _grow(window: Window, size: tuple[int, int]) -> Window:
    """The window with one HR pixel around it, as far as there are any; at least two for the
    reflection.
    """
    y0, y1, x0, x1 = window
    return Window(max(y0 - 1, 0), min(y1 + 1, size[0]), max(x0 - 1, 0), min(x1 + 1, size[1]))


def _sum_taps(taps: Tensor, window: Window, size: tuple[int, int]) -> Tensor:
    """Mode 4's last layer: sum of nine shifted taps ``[B, 27, rows, columns]``, reflected at the
    image's borders.
    """
    y0, y1, x0, x1 = window
    pad = (int(x0 == 0), int(x1 == size[1]), int(y0 == 0), int(y1 == size[0]))
    taps = F.pad(taps, pad, mode="reflect")
    # torch.compile of PyTorch 2.9 does not see through a named tuple's property
    rows = y1 - y0
    columns = x1 - x0
    total = taps[:, 0:3, 0:rows, 0:columns]
    for tap in range(1, 9):
        ky, kx = divmod(tap, 3)
        total = total + taps[:, 3 * tap : 3 * tap + 3, ky : ky + rows, kx : kx + columns]
    return total
