"""DIINN in plain PyTorch with free sizes, as exporters need it: no custom operator, and no Python
number that depends on a size.

The values are those of the package's decoder to float32 rounding; for speed use that one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diinn_fast.decoder import ImplicitDecoder
from diinn_fast.errors import ExportError
from diinn_fast.model import DIINN
from diinn_fast.packing import Layer


class Project(nn.Module):
    """The picture's stage: pixels to content, once per LR pixel.

    ``[B, 3, h, w]`` in [0, 1] to ``[B, L*W, h, w]``, L layers of width W. Mode 3: the content
    products of all layers; modes 1 and 2: their modulation, which the LR pixel alone decides.
    """

    def __init__(self, model: DIINN) -> None:
        super().__init__()
        decoder = checked(model)
        layers = decoder.layers()
        self.encoder = model.encoder
        self.width = layers.width
        self.mode = decoder.mode
        # Columns of a layer's matrix: the recurrent input, then the 3x3 neighbourhood.
        takes_content = layers.modulation[: 1 if self.mode == 1 else None]
        neighbourhood = 9 * decoder.in_channels
        parts = torch.cat([layer.matrix[:, -neighbourhood:] for layer in takes_content])
        self.weight = _fixed(parts.unflatten(1, (decoder.in_channels, 3, 3)))
        self.bias = _fixed(torch.cat([layer.bias for layer in takes_content]))
        # Modes 1 and 2 go on from the modulation before; mode 1 has a bias of its own there.
        further = layers.modulation[1:] if self.mode != 3 else []
        self.recurrent = nn.ParameterList(_pointwise(layer, self.width) for layer in further)
        own_bias = further if self.mode == 1 else []
        self.recurrent_bias = nn.ParameterList(_fixed(layer.bias) for layer in own_bias)

    def forward(self, picture: Tensor) -> Tensor:
        """Content of a picture."""
        features = self.encoder(picture * 2 - 1)
        content = F.conv2d(features, self.weight, self.bias, padding=1)
        if self.mode == 3:
            return content
        # Modes 1 and 2: k_i = relu(K_i [k_{i-1}, x]) (eq. 6 and 7) of all layers.
        width = self.width
        k = torch.relu(content[:, :width])
        found = [k]
        for n, weight in enumerate(self.recurrent, start=1):
            if self.mode == 1:
                k = F.conv2d(k, weight, self.recurrent_bias[n - 1])
            else:
                k = F.conv2d(k, weight) + content[:, n * width : (n + 1) * width]
            k = torch.relu(k)
            found.append(k)
        return torch.cat(found, dim=1)


class DecodeWindow(nn.Module):
    """The viewer's stage: content to RGB of any rows and columns of the HR grid.

    Rows and columns are separate vectors, so that a window is two ranges. All whole numbers are
    int64 tensors, so that no size is fixed by the export.
    """

    def __init__(self, model: DIINN) -> None:
        super().__init__()
        decoder = checked(model)
        layers = decoder.layers()
        self.width = layers.width
        self.mixes = decoder.mode == 3
        self.synthesis = nn.ParameterList(_columns(layer.matrix) for layer in layers.synthesis)
        self.synthesis_bias = nn.ParameterList(_fixed(layer.bias) for layer in layers.synthesis)
        # Modes 1 and 2 have their modulation in the content already.
        recurrent = layers.modulation[1:] if self.mixes else []
        self.recurrent = nn.ParameterList(
            _columns(layer.matrix[:, : self.width]) for layer in recurrent
        )
        self.last = _columns(layers.last.matrix)
        self.last_bias = _fixed(layers.last.bias)

    def forward(
        self,
        content: Tensor,
        rows: Tensor,
        columns: Tensor,
        lr: Tensor,
        origin: Tensor,
        size: Tensor,
    ) -> Tensor:
        """RGB ``[1, 3, R, C]`` in [0, 1].

        Args:
            content: ``[1, L*W, h', w']``, of `Project`; a part of it where ``origin`` says so.
            rows, columns: int64 ``[R]`` and ``[C]``, positions on the HR grid.
            lr: int64 ``[2]``, height and width of the whole LR picture.
            origin: int64 ``[2]``, LR row and column at which ``content`` begins.
            size: int64 ``[2]``, height and width of the HR grid.
        """
        i, dy = _position(rows, lr[0], size[0])
        j, dx = _position(columns, lr[1], size[1])
        at_rows = torch.index_select(content, 2, i - origin[0])
        nearest = torch.index_select(at_rows, 3, j - origin[1])[0].permute(1, 2, 0)
        ratio = (lr[0] * lr[1]).to(torch.float32) / (size[0] * size[1]).to(torch.float32)
        # The first sine layer is linear in row offset, column offset and ratio: a sum of vectors.
        weight = self.synthesis[0]
        constant = ratio * weight[2] + self.synthesis_bias[0]
        phase = dy[:, None, None] * weight[0] + (dx[None, :, None] * weight[1] + constant)
        width = self.width
        q = torch.relu(nearest[..., :width]) * torch.sin(phase)
        for n in range(1, len(self.synthesis)):
            k = nearest[..., n * width : (n + 1) * width]
            if self.mixes:
                k = k + q @ self.recurrent[n - 1]
            q = torch.relu(k) * torch.sin(q @ self.synthesis[n] + self.synthesis_bias[n])
        rgb = q @ self.last + self.last_bias
        return (rgb * 0.5 + 0.5).clamp(0, 1).permute(2, 0, 1)[None]


class FixedScale(nn.Module):
    """``[B, 3, h, w]`` to ``[B, 3, s*h, s*w]``, both in [0, 1], at one integer scale s.

    At an integer scale every LR pixel has the same s*s local coordinates: no gather is left, but
    s*s networks of 1x1 convolutions on the LR grid and a pixel shuffle, which all runtimes know.
    """

    phases: Tensor

    def __init__(self, model: DIINN, scale: int) -> None:
        super().__init__()
        if not 1 <= scale <= 16:
            raise ExportError(f"a fixed scale is a whole number from 1 to 16, not {scale}")
        decoder = checked(model)
        layers = decoder.layers()
        self.project = Project(model)
        self.scale = scale
        self.width = layers.width
        first, *further = layers.synthesis
        self.synthesis = nn.ParameterList(_pointwise(layer, self.width) for layer in further)
        self.synthesis_bias = nn.ParameterList(_fixed(layer.bias) for layer in further)
        recurrent = layers.modulation[1:] if decoder.mode == 3 else []
        self.recurrent = nn.ParameterList(_pointwise(layer, self.width) for layer in recurrent)
        self.last = _pointwise(layers.last, self.width)
        self.last_bias = _fixed(layers.last.bias)
        # sin(Q_0 p) of the s*s positions p = (dy, dx, 1 / s^2), row by row
        offset = (2 * torch.arange(scale) + 1 - scale).float() / scale
        dy = offset[:, None].expand(scale, scale)
        dx = offset[None].expand(scale, scale)
        position = torch.stack([dy, dx, torch.full_like(dy, 1 / scale**2)], -1).reshape(-1, 3)
        phases = torch.sin(F.linear(position, first.matrix.detach(), first.bias.detach()))
        self.register_buffer("phases", phases)

    def forward(self, picture: Tensor) -> Tensor:
        """The picture enlarged."""
        content = self.project(picture)
        width = self.width
        found = []
        for phase in self.phases:
            q = torch.relu(content[:, :width]) * phase.view(1, -1, 1, 1)
            for n, weight in enumerate(self.synthesis, start=1):
                k = content[:, n * width : (n + 1) * width]
                if len(self.recurrent):
                    k = k + F.conv2d(q, self.recurrent[n - 1])
                argument = F.conv2d(q, weight, self.synthesis_bias[n - 1])
                q = torch.relu(k) * torch.sin(argument)
            found.append(F.conv2d(q, self.last, self.last_bias))
        # channel-major, phases row by row: the order of a pixel shuffle
        rgb = F.pixel_shuffle(torch.stack(found, 2).flatten(1, 2), self.scale)
        return (rgb * 0.5 + 0.5).clamp(0, 1)


def checked(model: DIINN) -> ImplicitDecoder:
    """The decoder, if its formulation can be exported.

    Raises:
        ExportError: mode 4 or init_q, or a decoder whose layers were changed.
    """
    decoder = model.decoder
    if decoder.mode == 4 or decoder.init_q:
        which = "init_q" if decoder.init_q else "mode 4"
        raise ExportError(f"a model with {which} cannot be exported: use one of modes 1 to 3")
    # The exported graph is made from the weights alone: a changed layer would be lost in silence.
    if changed := decoder.edit():
        raise ExportError(f"{changed}, which an exported graph would lose: export it unchanged")
    return decoder


def _fixed(values: Tensor) -> nn.Parameter:
    """A copy that no longer follows the model."""
    return nn.Parameter(values.detach().clone(), requires_grad=False)


def _columns(matrix: Tensor) -> nn.Parameter:
    """A matrix ``[out, in]`` as ``[in, out]``, for rows of values on its left."""
    return _fixed(matrix.t().contiguous())


def _pointwise(layer: Layer, width: int) -> nn.Parameter:
    """The weight of a 1x1 convolution of a layer's first ``width`` inputs."""
    return _fixed(layer.matrix[:, :width, None, None])


def _position(position: Tensor, n: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    """Nearest LR index and local coordinate of HR positions: `diinn_fast.geometry`, with tensors
    for its numbers.
    """
    scale = n.to(torch.float32) / total.to(torch.float32)
    index = torch.floor((position.to(torch.float32) + 0.5) * scale).to(torch.int64)
    index = torch.minimum(index, n - 1)
    numerator = (2 * position + 1) * n - (2 * index + 1) * total
    return index, numerator.to(torch.float32) / total.to(torch.float32)
