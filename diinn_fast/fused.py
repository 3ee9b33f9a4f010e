"""The decoder by the decode operator, from the values of its layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from diinn_fast.backends.eager import linear
from diinn_fast.borders import grow, lr_ranges, sum_taps, with_border
from diinn_fast.formulation import Formulation
from diinn_fast.geometry import Window
from diinn_fast.ops import conv3x3, decode
from diinn_fast.packing import Layers, Packing, pack
from diinn_fast.problem import ContentWeights

STRIP_BYTES = 256 << 20
"""Most content (bytes) that inference holds at a time; larger images are projected in strips of LR
rows.
"""


class Source(NamedTuple):
    """What the operator decodes: see ``diinn_fast.ops``."""

    values: Tensor
    weights: list[Tensor]
    form: str


@dataclass(frozen=True)
class Fused:
    """One forward of a decoder: the values of its layers, read once, and how they are used."""

    layers: Layers
    plan: Formulation
    backend: str
    projection: str
    """The backend that projects the features."""
    kept: dict[tuple[str, torch.dtype], Packing]
    """Weights by form and dtype, packed by the first window and shared by the others."""

    def project(self, padded: Tensor) -> Tensor:
        """LR-size source of the decode operator, ``[B, h, w, L*H]``, from features with one pixel
        of padding, ``[B, h+2, w+2, C]``.

        In the form *content* it is the content products ``K_i^x x + bias`` of all layers, a 3x3
        convolution; in the form *modulation* the whole modulation branch, which depends on the LR
        pixel only. Not for init_q.
        """
        form = "modulation" if self.plan.recurrent_k else "content"
        return self._project(padded, self.packing(form, padded.dtype).content, border=True)

    def _project(self, features: Tensor, weights: ContentWeights, border: bool) -> Tensor:
        by = self.projection
        content = _conv3x3(features, weights.content, weights.content_bias, by, border)
        if not self.plan.recurrent_k:
            return content
        width = self.layers.width
        # In modes 1 and 2 modulation depends on content alone, so that LR pixels are enough for all
        # layers.
        k = torch.relu(content[..., :width])
        branch = [k]
        for n, layer in enumerate(self.layers.modulation[1:], start=1):
            recurrent = layer.matrix[:, :width].to(features.dtype)
            if self.plan.content:
                k = linear(k, recurrent) + content[..., n * width : (n + 1) * width]
            else:
                k = linear(k, recurrent) + layer.bias.to(features.dtype)
            k = torch.relu(k)
            branch.append(k)
        return torch.cat(branch, dim=-1)

    def packing(self, form: str, dtype: torch.dtype) -> Packing:
        """The weights as a form takes them: matrices in the operator's dtype. All that feeds a sine
        argument or a sum has the layers', which backends widen.
        """
        if (form, dtype) not in self.kept:
            query, content = pack(self.layers, self.plan.mode, form)
            query = query._replace(hidden=query.hidden.to(dtype), last=query.last.to(dtype))
            content = content._replace(content=content.content.to(dtype))
            # A convolution's bias has its dtype.
            if form != "direct":
                bias = content.content_bias[: len(content.content)]
                content = content._replace(content_bias=bias.to(dtype))
            self.kept[form, dtype] = Packing(query, content)
        return self.kept[form, dtype]

    def source(self, features: Tensor, form: str, border: bool = True) -> Source:
        """What the operator takes in a form, for features ``[B, C, h+2, w+2]``, or without a
        ``border`` a whole image's ``[B, C, h, w]``.
        """
        query, content = self.packing(form, features.dtype)
        features = features.permute(0, 2, 3, 1).contiguous()
        if form == "direct":
            return Source(features, [*query, *(v for v in content if v is not None)], form)
        return Source(self._project(features, content, border), list(query), form)

    def window(
        self,
        features: Tensor,
        lr: tuple[int, int],
        origin: tuple[int, int],
        size: tuple[int, int],
        window: Window,
        chunk: int,
    ) -> Tensor:
        """A window of the output at HR ``size``, from features of the image of size ``lr`` from
        ``origin`` on.
        """
        plan = self.plan
        form = plan.form(lr, size[0] * size[1])
        # The 3x3 last layer needs one more pixel on each side.
        grown = grow(window, size) if plan.needs_grid else window
        rows, columns = lr_ranges(grown, lr, size)
        # Only the LR rows and columns that the window sees are projected; of a whole image the
        # convolution adds the border of zeros itself: an operator less.
        part = rows.start, rows.stop, columns.start, columns.stop
        whole = part == (0, lr[0], 0, lr[1]) and tuple(features.shape[2:]) == lr
        border = form == "direct" or _cut_to_the_bit(features, self.projection) or not whole
        if border:
            features = with_border(features, rows, columns, lr, origin)
        source = self.source(features, form, border)
        out = decode(
            source.values,
            source.weights,
            form=form,
            mode=plan.mode,
            lr=lr,
            origin=(rows.start, columns.start),
            size=size,
            window=grown,
            chunk=chunk,
            backend=self.backend,
        )
        return sum_taps(out, window, size) if plan.needs_grid else out

    def strips(
        self,
        features: Tensor,
        lr: tuple[int, int],
        origin: tuple[int, int],
        size: tuple[int, int],
        window: Window,
        chunk: int,
    ) -> Tensor:
        """`window` without gradients: in strips of rows whose content (and, with a 3x3 last layer,
        nine taps) stay under STRIP_BYTES.
        """
        batch = features.shape[0]
        plan = self.plan
        channels = self.layers.last.bias.shape[0]
        columns = lr_ranges(grow(window, size) if plan.needs_grid else window, lr, size)[1]
        # On the CPU 16-bit content may be computed with in float32.
        item = max(features.element_size(), 1 if features.is_cuda else 4)
        content = len(self.layers.modulation) * self.layers.width
        # Content is held per LR row; a row of the output costs its share of one.
        row_bytes = batch * (columns.stop - columns.start) * content * item * lr[0] / size[0]
        if plan.needs_grid:
            row_bytes += batch * plan.taps * channels * (window.x1 - window.x0) * item
        step = max(1, int(STRIP_BYTES / max(row_bytes, 1)))
        # A small window is one strip: no copy into a larger tensor.
        if step >= window.y1 - window.y0:
            return self.window(features, lr, origin, size, window, chunk)
        out = features.new_empty(batch, channels, window.y1 - window.y0, window.x1 - window.x0)
        for y in range(window.y0, window.y1, step):
            strip = Window(y, min(y + step, window.y1), window.x0, window.x1)
            part = self.window(features, lr, origin, size, strip, chunk)
            out[:, :, y - window.y0 : strip.y1 - window.y0] = part
        return out

    def points(
        self,
        source: Source,
        lr: tuple[int, int],
        size: tuple[int, int],
        pixel: Tensor,
        offset: Tensor,
    ) -> Tensor:
        """Points ``[B, N, channels]`` of a whole image, by LR pixel ``[B, N]`` and offset
        ``[B, N, 2]``.
        """
        return decode(
            source.values,
            source.weights,
            form=source.form,
            mode=self.plan.mode,
            lr=lr,
            size=size,
            index=pixel.contiguous(),
            offset=offset.contiguous(),
            backend=self.backend,
        )


def _cut_to_the_bit(features: Tensor, backend: str) -> bool:
    """Whether the content is projected by our own operator, whose sums do not depend on the shape:
    those of the convolution library do, and windows would differ in the last bit.
    """
    # The operator has no gradients; nor has int8, whatever projects.
    return features.device.type == "cpu" and (backend == "int8" or not torch.is_grad_enabled())


def _conv3x3(features: Tensor, weight: Tensor, bias: Tensor, backend: str, border: bool) -> Tensor:
    """3x3 convolution by weight ``[out, 9C]`` (columns c*9 + tap), ``[B, h, w, out]``, of
    ``[B, h+2, w+2, C]``, or without a ``border`` of ``[B, h, w, C]`` and zeros around it.
    """
    if border and _cut_to_the_bit(features, backend):
        return conv3x3(features, weight, bias, backend)
    kernel = weight.view(-1, features.shape[-1], 3, 3)
    out = F.conv2d(features.permute(0, 3, 1, 2), kernel, bias, padding=0 if border else 1)
    return out.permute(0, 2, 3, 1).contiguous()
