"""Decode problems, and the float64 definition that they are judged by.

A `Case` is a decode of a whole decoder, by its sizes alone: what is computed from it is the same in
every test and for every backend, and is computed once. `Operands` are those of the decode operator,
which also takes tiles and points that no decoder would choose.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any
from zlib import crc32

import torch
from torch import Tensor

from diinn_fast import ImplicitDecoder, reference
from diinn_fast.backends import int8
from diinn_fast.fused import Fused
from diinn_fast.geometry import Window, local_offset, lr_range, nearest_index
from diinn_fast.problem import Problem, query_weights

MODES = [(mode, init_q) for mode in (1, 2, 3, 4) for init_q in (False, True)]
Geometry = tuple[int, int, int, int]
"""LR height and width, HR height and width."""


def make_decoder(
    mode: int, init_q: bool = False, width: int = 256, channels: int = 64, layers: int = 4
) -> ImplicitDecoder:
    """A decoder whose weights are larger than PyTorch's default, so that every branch matters in
    the output.
    """
    decoder = ImplicitDecoder(channels, [width] * layers, mode=mode, init_q=init_q)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.mul_(2.0)
    return decoder


@torch.no_grad()
def away_from_kinks(decoder: ImplicitDecoder) -> ImplicitDecoder:
    """Biases so large that rounding takes no relu's argument across zero, half of them off."""
    for parameter in decoder.parameters():
        parameter.mul_(0.25)
    for pair in decoder.K.children():
        layer = pair[0]
        layer.bias.copy_(torch.where(torch.rand_like(layer.bias) < 0.5, -4.0, 4.0))
    return decoder


def oracle(
    decoder: ImplicitDecoder,
    features: Tensor,
    size: Sequence[int],
    window: Sequence[int] | None = None,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """The literal definition with this decoder's weights, in float64 unless told."""
    weights = {k: v.to(dtype) for k, v in decoder.state_dict(keep_vars=True).items()}
    return reference.decode(weights, features.to(dtype), size, decoder.mode, window)


def random_geometry(rng: random.Random, mode: int = 3) -> Geometry:
    """LR and HR sizes: odd, tiny, anisotropic, up- and down-scaling."""
    h = rng.randint(1, 11)
    w = rng.randint(1, 11)
    least = 2 if mode == 4 else 1
    return h, w, rng.randint(least, 5 * h + 3), rng.randint(least, 5 * w + 3)


# -- decodes of a decoder --------------------------------------------------------------------------


@dataclass(frozen=True)
class Network:
    """A decoder by its sizes; equal ones have equal weights."""

    mode: int
    init_q: bool = False
    width: int = 64
    channels: int = 5
    layers: int = 4
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    kinks: bool = True
    """Whether relu's arguments may be near zero, where rounding decides about whole terms."""


@dataclass(frozen=True)
class Case:
    """A decode of a batch, whole or a window of it."""

    network: Network
    geometry: Geometry
    batch: int = 1
    window: tuple[int, int, int, int] | None = None
    layout: str = "contiguous"

    @property
    def lr(self) -> tuple[int, int]:
        return self.geometry[:2]

    @property
    def size(self) -> tuple[int, int]:
        return self.geometry[2:]

    @property
    def direct(self) -> bool:
        """Whether its content products are done per query."""
        h, w, height, width = self.geometry
        return self.network.init_q or height * width < h * w


def _seed(*key: object) -> None:
    torch.manual_seed(crc32(repr(key).encode()))


@cache
def decoder_of(network: Network) -> ImplicitDecoder:
    """Not to be changed by a test."""
    with torch.random.fork_rng(devices=[]):
        _seed(replace(network, dtype=torch.float32, device="cpu"))
        decoder = make_decoder(
            network.mode, network.init_q, network.width, network.channels, network.layers
        )
        decoder = decoder if network.kinks else away_from_kinks(decoder)
    return decoder.to(network.device, network.dtype)


@cache
def features_of(case: Case) -> Tensor:
    """Features ``[B, C, h, w]``, with strides as the layout says; they require a gradient."""
    network = case.network
    with torch.random.fork_rng(devices=[]):
        _seed(case.geometry, case.batch, network.channels)
        values = torch.randn(case.batch, network.channels, *case.lr)
    values = values.to(network.device, network.dtype)
    if case.layout == "channels_last":
        values = values.contiguous(memory_format=torch.channels_last)
    elif case.layout == "transposed":
        values = values.transpose(2, 3).contiguous().transpose(2, 3)
    return values.requires_grad_()


def inputs_of(case: Case) -> list[Tensor]:
    """What a decode has gradients for."""
    return [features_of(case), *decoder_of(case.network).parameters()]


@cache
def grad_of(case: Case) -> Tensor:
    """A gradient of the output ``[B, 3, rows, columns]``, the same for each way to compute it."""
    y0, y1, x0, x1 = case.window or (0, case.size[0], 0, case.size[1])
    with torch.random.fork_rng(devices=[]):
        _seed("grad", case.geometry, case.batch)
        values = torch.randn(case.batch, 3, y1 - y0, x1 - x0)
    return values.to(case.network.device, case.network.dtype)


@contextmanager
def integers_alone() -> Iterator[None]:
    """The CPU's backend ``int8`` computes no query again in float32, as those of GPUs do not."""
    before = int8.COARSE
    int8.COARSE = math.inf
    try:
        yield
    finally:
        int8.COARSE = before


def decode(case: Case, backend: str) -> Tensor:
    result: Tensor = decoder_of(case.network)(
        features_of(case), case.size, window=case.window, backend=backend
    )
    return result


def gradients(case: Case, backend: str) -> list[Tensor]:
    return list(torch.autograd.grad(decode(case, backend), inputs_of(case), grad_of(case)))


@cache
@torch.no_grad()
def exact_values(case: Case) -> Tensor:
    return oracle(decoder_of(case.network), features_of(case), case.size, case.window)


@cache
def exact_gradients(case: Case) -> list[Tensor]:
    out = oracle(decoder_of(case.network), features_of(case), case.size, case.window)
    return list(torch.autograd.grad(out, inputs_of(case), grad_of(case).double()))


@cache
def plain_values(case: Case, yardstick: str, precision: str = "ieee") -> Tensor:
    """By plain PyTorch in the case's own dtype, the ``definition`` or backend ``eager``; or by
    eager in ``bfloat16``; or by ``int8``, the CPU's hidden products of integers.

    ``precision`` only tells apart what is computed under different settings of PyTorch.
    """
    network = case.network
    if yardstick == "bfloat16":
        case = replace(case, network=replace(network, dtype=torch.bfloat16))
    with torch.no_grad():
        if yardstick == "int8":
            case = replace(case, network=replace(network, device="cpu"))
            with integers_alone():
                return _by_hidden_integers(case)
        if yardstick != "definition":
            return decode(case, "eager")
        decoder = decoder_of(network)
        return oracle(decoder, features_of(case), case.size, case.window, network.dtype)


def _by_hidden_integers(case: Case) -> Tensor:
    """By the CPU's backend ``int8`` from content in the case's own dtype: a GPU's backends have
    integers in the hidden products alone.
    """
    decoder = decoder_of(case.network)
    features = features_of(case)
    path = decoder.prepare(features, backend="int8")
    assert isinstance(path, Fused)
    path = replace(path, projection="cpu")
    result: Tensor = decoder(features, case.size, window=case.window, prepared=path)
    return result


@cache
def plain_gradients(case: Case, yardstick: str, precision: str = "ieee") -> list[Tensor]:
    """As `plain_values`."""
    if yardstick == "eager":
        return gradients(case, "eager")
    decoder = decoder_of(case.network)
    out = oracle(decoder, features_of(case), case.size, case.window, case.network.dtype)
    return list(torch.autograd.grad(out, inputs_of(case), grad_of(case)))


# -- decodes of the operator -----------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Operands:
    """Arguments of the operators ``diinn_fast::decode`` and ``diinn_fast::decode_backward``."""

    source: Tensor
    weights: list[Tensor]
    form: str
    mode: int
    lr: tuple[int, int]
    origin: tuple[int, int]
    size: tuple[int, int]
    window: Window | None
    index: Tensor | None = None
    offset: Tensor | None = None
    chunk: int = 0

    def arguments(self) -> tuple[Any, ...]:
        """As the operators take them, all but the backend."""
        geometry = [*self.lr, *self.origin, *self.size, *(self.window or ())]
        return (
            self.source, self.weights, self.form, self.mode, geometry,
            self.index, self.offset, self.chunk,
        )  # fmt: skip

    @property
    def problem(self) -> Problem:
        """What a backend is told besides source and weights."""
        return Problem(
            self.form, self.mode, self.lr, self.origin, self.size,
            self.window, self.index, self.offset, self.chunk,
        )  # fmt: skip

    def decode(self, backend: str) -> Tensor:
        result: Tensor = torch.ops.diinn_fast.decode(*self.arguments(), backend)
        return result

    def gradients(
        self, grad: Tensor, backend: str, needs: Sequence[bool] | None = None
    ) -> list[Tensor]:
        """Gradients of [source, *weights]; empty where ``needs`` says that they are not needed."""
        wanted = [True] * (1 + len(self.weights)) if needs is None else list(needs)
        result: list[Tensor] = torch.ops.diinn_fast.decode_backward(
            grad, *self.arguments(), backend, wanted
        )
        return result

    def to(self, dtype: torch.dtype) -> Operands:
        """All numbers in ``dtype``."""
        return replace(
            self,
            source=self.source.to(dtype),
            weights=[v.to(dtype) for v in self.weights],
        )

    def cpu(self) -> Operands:
        """The same on the CPU."""
        index = None if self.index is None else self.index.cpu()
        offset = None if self.offset is None else self.offset.cpu()
        weights = [v.cpu() for v in self.weights]
        return replace(self, source=self.source.cpu(), weights=weights, index=index, offset=offset)

    def output_gradient(self) -> Tensor:
        """A random gradient of the output, in the source's dtype."""
        channels = query_weights(self.weights).channels
        batch = len(self.source)
        if self.window is None:
            assert self.index is not None
            shape: tuple[int, ...] = (batch, self.index.shape[1], channels)
        else:
            shape = (batch, channels, *self.window.shape)
        return torch.randn(shape).to(self.source)

    def as_points(self, columns_first: bool = False) -> Operands:
        """The window's queries as points, row by row or column by column."""
        assert self.window is not None
        y0, y1, x0, x1 = self.window
        i = nearest_index(y0, y1, self.lr[0], self.size[0])
        j = nearest_index(x0, x1, self.lr[1], self.size[1])
        dy = local_offset(y0, y1, i, self.lr[0], self.size[0], torch.float32)
        dx = local_offset(x0, x1, j, self.lr[1], self.size[1], torch.float32)
        halo = 2 if self.form == "direct" else 0
        row = self.source.shape[2] - halo
        index = (i - self.origin[0])[:, None] * row + (j - self.origin[1])
        offset = torch.stack(torch.meshgrid(dy, dx, indexing="ij"), dim=-1)
        if columns_first:
            index = index.T
            offset = offset.transpose(0, 1)
        batch = len(self.source)
        device = self.source.device
        return replace(
            self,
            window=None,
            index=index.flatten().expand(batch, -1).to(device),
            offset=offset.flatten(0, 1).expand(batch, -1, 2).to(device),
        )

    def at_points(self, count: int) -> Operands:
        """Scattered points of the source's pixels."""
        halo = 2 if self.form == "direct" else 0
        pixels = (self.source.shape[1] - halo) * (self.source.shape[2] - halo)
        index = torch.randint(pixels, (len(self.source), count))
        offset = torch.rand(*index.shape, 2) * 2 - 1
        device = self.source.device
        return replace(self, window=None, index=index.to(device), offset=offset.to(device))


def operands(
    form: str,
    mode: int,
    *,
    width: int = 64,
    layers: int = 4,
    channels: int = 6,
    outputs: int = 3,
    batch: int = 2,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    small: bool = False,
) -> Operands:
    """Random operands of a window that does not start at 0, 0, from a tile of its LR pixels.

    Matrices are in ``dtype``; what feeds a sine argument or a sum is at least float32.
    """
    lr = (5, 4) if small else (9, 8)
    size = (14, 11) if small else (30, 41)
    window = Window(3, 9, 2, 8) if small else Window(7, 29, 5, 38)
    rows = lr_range(window.y0, window.y1, lr[0], size[0])
    columns = lr_range(window.x0, window.x1, lr[1], size[1])
    grid = rows[1] - rows[0], columns[1] - columns[0]
    spread = width**-0.5
    halo = 2 if form == "direct" else 0
    depth = channels if form == "direct" else layers * width
    image = torch.randn(batch, grid[0] + halo + 1, grid[1] + halo + 2, depth).to(device, dtype)
    taps = 9 * channels
    product = width if form == "modulation" else 2 * width
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    weights = [
        (torch.randn(width, taps if form == "direct" else 3) / 3).to(exact),
        torch.randn(width).to(exact),
        (torch.randn(layers - 1, product, width) * spread).to(dtype),
        torch.randn(layers - 1, width).to(exact),
        (torch.randn(outputs, width) * spread).to(dtype),
        torch.randn(outputs).to(exact),
    ]
    if form == "direct":
        weights += [
            (torch.randn(width if mode == 1 else layers * width, taps) * spread).to(dtype),
            torch.randn(layers * width).to(exact),
            torch.randn(taps, 3).to(exact),
            torch.randn(taps).to(exact),
        ]
    return Operands(
        source=image[:, 1:, 2:],  # a part: not contiguous
        weights=[v.to(device) for v in weights],
        form=form,
        mode=mode,
        lr=lr,
        origin=(rows[0], columns[0]),
        size=size,
        window=window,
    )
