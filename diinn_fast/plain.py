"""The decoder run layer by layer, as modules, at HR size: the definition.

For decoders whose layers were changed, for transforms (``torch.func``, forward-mode
differentiation, ``torch.jit.trace``, meta tensors), and as ``backend="plain"``. What the published
class does with a changed layer is done here, in the same order on the same shapes
``[B, channels, rows, columns]``. Layers known to look at one pixel at a time are run on a strip of
rows after the other, all others on everything at once, as the published class does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diinn_fast.borders import grow, lr_ranges, with_border
from diinn_fast.encoders.base import convolution_radius
from diinn_fast.errors import EditError
from diinn_fast.formulation import Formulation
from diinn_fast.geometry import Window, area_ratio, local_offset, nearest_index
from diinn_fast.guard import global_change, layer_edit, note, watched
from diinn_fast.reach import known, whole_picture

CHUNK = 4096
"""Queries at a time, of about 8 KiB each: a quarter takes less time than all of 96 x 96 at once."""


@watched
class Sine(nn.Module):
    """The activation of the synthesis layers."""

    def forward(self, x: Tensor) -> Tensor:
        """sin(x), element by element."""
        return torch.sin(x)


LOCAL = (nn.Conv2d, Sine, nn.ReLU, nn.Identity, nn.Sequential)
"""Modules that see a pixel alone, or as a convolution the neighbours that its kernel says."""


@dataclass(frozen=True)
class Plain:
    """The modules of a decoder and how they are called."""

    plan: Formulation
    modulation: nn.ModuleList  # K_i
    synthesis: nn.ModuleList  # Q_i
    last: nn.Module
    first: nn.Module | None  # the sine layer of init_q

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
        ``origin`` on, ``chunk`` queries at a time.
        """
        y0, y1, x0, x1 = window
        if (y1 - y0, x1 - x0) != tuple(size):
            self._check_reach()
        step = self._rows(chunk, x1 - x0) or y1 - y0
        halo = sum(convolution_radius(module) for module in self._modules())
        strips = []
        for y in range(y0, y1, step) if step < y1 - y0 else (y0,):
            strip = Window(y, y1 if step >= y1 - y0 else min(y + step, y1), x0, x1)
            grown = grow(strip, size, halo) if halo else strip
            out = self._network(*self._inputs(features, lr, origin, size, grown))
            # what the halo's own borders made is cut off again
            top = strip.y0 - grown.y0
            left = strip.x0 - grown.x0
            if halo:
                out = out[..., top : top + strip.y1 - strip.y0, left : left + x1 - x0]
            strips.append(out)
        return strips[0] if len(strips) == 1 else torch.cat(strips, dim=2)

    strips = window
    """Bands are what `window` works in anyway."""

    def points(
        self, features: Tensor, pixel: Tensor, offset: Tensor, ratios: Sequence[float]
    ) -> Tensor:
        """Points ``[B, N, channels]`` of a whole image: LR pixel ``[B, N]``, offset ``[B, N, 2]``
        and the area ratio of each image, or of all.
        """
        batch = features.shape[0]
        content = F.unfold(features, 3, padding=1)  # [B, 9C, h*w]
        ratio = torch.tensor(list(ratios), device=features.device, dtype=offset.dtype)
        ratio = ratio.expand(batch)
        parts = []
        # a point has no neighbours: any layer may take some of them at a time
        for start in range(0, max(pixel.shape[1], 1), CHUNK):
            index = pixel[:, start : start + CHUNK]
            at = index[:, None].expand(-1, content.shape[1], -1)
            x = content.gather(2, at)[:, :, None]
            p = offset[:, start : start + CHUNK].transpose(1, 2)
            last = ratio[:, None, None].expand(batch, 1, p.shape[2])
            p = torch.cat([p, last], dim=1)[:, :, None].to(features.dtype)
            parts.append(self._network(x, p)[:, :, 0].transpose(1, 2))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _modules(self) -> Iterable[nn.Module]:
        # what the lists hold: one of one's own may give others
        yield from self.modulation._modules.values()
        yield from self.synthesis._modules.values()
        yield self.last
        if self.first is not None:
            yield self.first

    def _check_reach(self) -> None:
        """Whether a part of the picture can be decoded alone. Raises EditError if not."""
        for layer in self._modules():
            for module in layer.modules():
                if whole_picture(module):
                    raise EditError(
                        f"the decoder has a {type(module).__name__}, which looks at the whole "
                        "picture: decode it in one piece"
                    )
                if not known(module):
                    note(
                        f"parts of pictures are decoded as if {type(module).__name__} looked at "
                        "single pixels"
                    )

    def _rows(self, chunk: int, columns: int) -> int:
        """Rows of a strip; 0: all at once."""
        if chunk:
            return max(1, chunk // columns)
        if torch.jit.is_tracing() or torch.compiler.is_compiling():
            return 0  # the number of strips would be recorded
        if global_change():
            return 0  # what sees or replaces functions is to see the whole
        local = all(
            type(module) in LOCAL and layer_edit(module, type(module)) is None
            for layer in self._modules()
            for module in layer.modules()
        )
        return max(1, CHUNK // columns) if local else 0

    def _inputs(
        self,
        features: Tensor,
        lr: tuple[int, int],
        origin: tuple[int, int],
        size: tuple[int, int],
        window: Window,
    ) -> tuple[Tensor, Tensor]:
        """Content ``[B, 9C, rows, columns]`` and position ``[B, 3, rows, columns]`` of a window's
        queries.
        """
        y0, y1, x0, x1 = window
        h, w = lr
        height, width = size
        work = torch.float64 if features.dtype == torch.float64 else torch.float32
        # content: the 3x3 neighbourhood of the nearest feature
        rows, columns = lr_ranges(window, lr, size)
        tile = with_border(features, rows, columns, lr, origin)
        grid = (rows.stop - rows.start, columns.stop - columns.start)
        neighbours = F.unfold(tile, 3).view(tile.shape[0], 9 * tile.shape[1], *grid)
        i = nearest_index(y0, y1, h, height, features.device)
        j = nearest_index(x0, x1, w, width, features.device)
        x = neighbours.index_select(2, i - rows.start).index_select(3, j - columns.start)
        # position: dy, dx, area ratio
        dy = local_offset(y0, y1, i, h, height, work)[:, None].expand(-1, x1 - x0)
        dx = local_offset(x0, x1, j, w, width, work).expand(y1 - y0, -1)
        p = torch.stack([dy, dx, torch.ones_like(dy) * area_ratio(lr, size)])
        return x, p.to(features.dtype).expand(features.shape[0], -1, -1, -1)

    def _network(self, x: Tensor, p: Tensor) -> Tensor:
        """The dual interactive network and the last layer on content and position."""
        if self.first is not None:
            p = self.first(p)
            x = x * p
        k = self.modulation[0](x)
        q = k * self.synthesis[0](p)
        for n in range(1, len(self.modulation)):
            # Eq. 4, 6 and 7 differ in this input alone.
            recurrent = k if self.plan.recurrent_k else q
            k = self.modulation[n](
                torch.cat([recurrent, x], dim=1) if self.plan.content else recurrent
            )
            q = k * self.synthesis[n](q)
        out: Tensor = self.last(q)
        return out
