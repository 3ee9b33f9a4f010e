"""From a ``Problem`` to a launch of a forward kernel."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from diinn_fast.geometry import round_float32
from diinn_fast.problem import ContentWeights, Problem, content_weights, query_weights

from . import tiles, tuned
from .direct import direct
from .network import GEOMETRY
from .projected import projected

LEAST = 16
"""Fewest rows, columns and terms of a product on tensor cores."""


class Slabs(NamedTuple):
    """What a backward needs of its queries, ``[L, queries, H]`` each."""

    s: Tensor  # sine arguments, float32
    k: Tensor  # modulation
    q: Tensor


class Network:
    """Source and weights of one decode in the layout that the kernels take, and the launch of its
    forward kernel.
    """

    def __init__(
        self,
        problem: Problem,
        source: Tensor,
        weights: Sequence[Tensor],
        tile: tiles.Tile | None = None,
    ) -> None:
        """``tile``: this one, whatever the tables and the tuned file say."""
        self.form = problem.form
        self.mode = problem.mode
        self.tile = tile
        self.dtype = source.dtype
        self.device = source.device
        query = query_weights([v.detach().contiguous() for v in weights])
        self.width = query.width
        self.layers = query.layers
        self.channels = query.channels
        # Positions and biases feed sines and stay in float32: 16 bit would move the phase.
        self.position = query.position.float()
        self.position_bias = query.position_bias.float()
        self.hidden = query.hidden.to(self.dtype)
        self.hidden_bias = query.hidden_bias.float()
        self.last = query.last.to(self.dtype)
        self.last_bias = query.last_bias.float()
        self.source = source.detach().contiguous()
        self.content: Tensor | None = None
        self.content_bias: Tensor | None = None
        self.first: Tensor | None = None
        self.first_bias: Tensor | None = None
        if direct := content_weights(weights):
            self._prepare_direct(direct)

    def _prepare_direct(self, weights: ContentWeights) -> None:
        # Features are padded to what a product takes at least, and a tap's stand together.
        self.features = self.source.shape[-1]
        self.depth = triton.cdiv(self.features, LEAST) * LEAST
        self.source = F.pad(self.source, (0, self.depth - self.features))
        self.content = self.tap_major(weights.content.detach().to(self.dtype))
        self.content_bias = weights.content_bias.detach().float().contiguous()
        if weights.first is not None and weights.first_bias is not None:
            self.position = self.tap_major(self.position)
            self.first = self.tap_major(weights.first.detach().float().t()).t().contiguous()
            self.first_bias = self.tap_major(weights.first_bias.detach().float()[None])[0]

    def tap_major(self, matrix: Tensor) -> Tensor:
        """Columns from c*9 + tap to tap*depth + c, so that a tap's features are contiguous as in
        the source.
        """
        taps = matrix.reshape(len(matrix), self.features, 9).transpose(1, 2)
        return F.pad(taps, (0, self.depth - self.features)).flatten(1).contiguous()

    def channel_major(self, matrix: Tensor) -> Tensor:
        """The inverse of ``tap_major``."""
        return (
            matrix.view(len(matrix), 9, self.depth)[..., : self.features].transpose(1, 2).flatten(1)
        )

    @cached_property
    def precision(self) -> str:
        """Of float32 products: three TF32 products each (as accurate as float32), or one where the
        user allows it.
        """
        return "tf32" if self.device.type == "cuda" and allows_tf32() else "tf32x3"

    @property
    def fast_sine(self) -> bool:
        """Whether the hardware's sine is accurate enough: with 16-bit or TF32 products."""
        return self.dtype != torch.float32 or self.precision == "tf32"

    def forward(self, problem: Problem) -> Tensor:
        """RGB of all queries of a problem."""
        out = self.source.new_empty(problem.output_shape(len(self.source), self.channels))
        if out.numel():
            self._launch(problem, self.source, out, None)
        return out

    def recompute(self, problem: Problem, images: slice) -> Slabs:
        """Sine arguments s (float32), modulation k and q ``[L, queries, H]`` of some images'
        queries, row by row.
        """
        source = self.source[images]
        shape = (self.layers, len(source) * query_count(problem), self.width)
        s = self.source.new_empty(shape, dtype=torch.float32)
        slabs = Slabs(s, self.source.new_empty(shape), self.source.new_empty(shape))
        self._launch(problem, source, None, slabs)
        return slabs

    def _launch(
        self,
        problem: Problem,
        source: Tensor,
        out: Tensor | None,
        slabs: Slabs | None,
    ) -> None:
        """Into ``out``, or into ``slabs``."""
        keep = slabs is not None
        tile = self.tile or tuned.tile(self.form, self.device, self.dtype, self.width, keep)
        constants = self._constants(problem.window is None, keep, tile)
        # The RGB layer is a product too, whose rows fill up an instruction's.
        surplus = constants["PADDED"] - self.channels
        last = F.pad(self.last, (0, 0, 0, surplus))
        kernel = direct if self.form == "direct" else projected
        kernel[(programs(problem, tile) * len(source),)](
            source=source,
            last=last,
            out=out,
            **self._weights(),
            **outputs(slabs),
            **point_tensors(problem),
            **geometry(problem, source),
            **constants,
            **options(tile),
        )

    def _weights(self) -> dict[str, Tensor | None]:
        """The kernel's arguments for all weights but the last."""
        weights: dict[str, Tensor | None] = {
            "position": self.position,
            "position_bias": self.position_bias,
            "hidden": self.hidden,
            "hidden_bias": self.hidden_bias,
            "last_bias": self.last_bias,
        }
        if self.form == "direct":
            weights |= {
                "content": self.content,
                "content_bias": self.content_bias,
                "first": self.first,
                "first_bias": self.first_bias,
            }
        return weights

    def _constants(self, points: bool, keep: bool, tile: tiles.Tile) -> dict[str, Any]:
        """The kernel's compile-time arguments."""
        constants = tile_constants(tile, self.channels) | {
            "WIDTH": self.width,
            "LAYERS": self.layers,
            "CHANNELS": self.channels,
            "POINTS": points,
            "KEEP": keep,
            "PRECISION": self.precision,
            "FAST": self.fast_sine,
        }
        # Each kernel takes the constants of its own form only.
        if self.form == "direct":
            init_q = self.first is not None
            return constants | direct_constants(self.depth, self.mode, init_q)
        return constants | projected_constants(tile, self.form == "modulation")


def programs(problem: Problem, tile: tiles.Tile) -> int:
    """How many programs an image takes: tiles of the window, or points in their order."""
    if problem.window is None:
        return int(triton.cdiv(query_count(problem), tile.ty * tile.tx))
    rows, columns = problem.window.shape
    return int(triton.cdiv(rows, tile.ty) * triton.cdiv(columns, tile.tx))


def outputs(slabs: Slabs | None) -> dict[str, Tensor | None]:
    """The kernels' slab arguments."""
    if slabs is None:
        return {"slab_s": None, "slab_k": None, "slab_q": None}
    return {"slab_s": slabs.s, "slab_k": slabs.k, "slab_q": slabs.q}


def point_tensors(problem: Problem) -> dict[str, Tensor | None]:
    """The kernels' arguments for points; of a window there are none."""
    if problem.index is None or problem.offset is None:
        return {"index": None, "offset": None}
    return {
        "index": problem.index.contiguous(),
        "offset": problem.offset.detach().float().contiguous(),
    }


def tile_constants(tile: tiles.Tile, channels: int) -> dict[str, Any]:
    """Compile-time arguments of the forward kernels that follow from the tile and the output
    channels.
    """
    padded = triton.next_power_of_2(max(LEAST, channels))
    return {"PADDED": padded, "TY": tile.ty, "TX": tile.tx, "BN": tile.bn, "STAGES": tile.stages}


def projected_constants(tile: tiles.Tile, modulation: bool) -> dict[str, Any]:
    """Compile-time arguments of the kernel on LR-size content alone."""
    return {"MODULATION": modulation, "PAIRED": tile.paired, "NESTED": tile.nested}


def direct_constants(depth: int, mode: int, init_q: bool) -> dict[str, Any]:
    """Compile-time arguments of the direct kernel alone."""
    most = 32 if init_q else 64  # with init_q p' in float32 lies beside x: fewer features at a time
    return {"DEPTH": depth, "BC": tiles.divisor(depth, most), "MODE": mode, "INIT_Q": init_q}


def options(tile: tiles.Tile) -> dict[str, Any]:
    """Compiler options. Fused multiply-add changes neither indices nor offsets, which multiply
    last.
    """
    return {"num_warps": tile.warps, "num_stages": tile.stages, "enable_fp_fusion": True}


def query_count(problem: Problem) -> int:
    """Queries per image."""
    if problem.window is not None:
        return problem.window.shape[0] * problem.window.shape[1]
    assert problem.index is not None
    return problem.index.shape[1]


def geometry(problem: Problem, source: Tensor) -> dict[str, Any]:
    """The kernels' GEOMETRY arguments."""
    h, w = problem.lr
    height, width = problem.size
    # Points count as a window of one row.
    y0 = 0
    x0 = 0
    rows = 1
    columns = 0
    if problem.window is not None:
        y0 = problem.window.y0
        x0 = problem.window.x0
        rows, columns = problem.window.shape
    else:
        assert problem.index is not None
        columns = problem.index.shape[1]
    # The factors of the nearest map, as `geometry.nearest_index` rounds them.
    scale = (round_float32(h / height), round_float32(w / width))
    halo = 2 if problem.form == "direct" else 0
    grid = source.shape[1] - halo, source.shape[2] - halo
    values = (
        h,
        w,
        height,
        width,
        *scale,
        problem.ratio,
        *problem.origin,
        *grid,
        y0,
        x0,
        rows,
        columns,
        len(source),
    )
    return dict(zip(GEOMETRY, values, strict=True))


def allows_tf32() -> bool:
    """What the user's settings say of products on CUDA; "none" leaves it to the setting for
    everything.
    """
    precision: str = torch.backends.cuda.matmul.fp32_precision
    if precision == "none":
        precision = torch.backends.fp32_precision  # type: ignore[attr-defined]
    return precision == "tf32"
