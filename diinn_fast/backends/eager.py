"""Backend ``eager``: plain PyTorch, chunk by chunk. Runs on every device and in every dtype,
float64 included.

Rows of a product are computed alike for every row count from 16 up (checked by the tests), so
chunks are padded to at least 16 queries and the answer does not depend on how the queries are cut.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from diinn_fast.backends._gradients import add_rows
from diinn_fast.formulation import FORMULATIONS
from diinn_fast.geometry import local_offset, nearest_index
from diinn_fast.problem import (
    ContentWeights,
    Gradients,
    Problem,
    content_weights,
    entry,
    query_weights,
)

DEVICES = ("cpu", "cuda", "mps", "xpu")
DTYPES = "float64, float32, bfloat16, float16"
INTEGERS = False
NOTE = "plain PyTorch, projected and chunked; all modes, forward and backward"

CHUNK = 4096
"""Queries at a time: about 16 KiB each, so that a chunk stays near the last-level cache."""
ROWS = 16
"""Fewest rows of a product."""


def unavailable() -> str | None:
    """Why the backend cannot run on this machine, or None."""
    return None


def unsupported(problem: Problem, source: Tensor) -> str | None:
    """Why the backend cannot do this problem, or None."""
    return None


class Chunk(NamedTuple):
    """A chunk of one image's queries; vectors have at least ROWS entries, the surplus repeats the
    last query.
    """

    image: int
    start: int
    stop: int
    pixel: Tensor  # int64 [n], flattened pixel of the source grid
    position: Tensor  # [n, 3]: dy, dx, ratio


def _chunks(problem: Problem, source: Tensor) -> Iterator[Chunk]:
    """All queries of all images, in chunks."""
    work = torch.float64 if source.dtype == torch.float64 else torch.float32
    device = source.device
    h, w = problem.lr
    height, width = problem.size
    columns = problem.grid(source)[1]
    # Rows and columns of a window are independent: one index per row and per column is enough.
    if problem.window is not None:
        y0, y1, x0, x1 = problem.window
        i = nearest_index(y0, y1, h, height, device)
        j = nearest_index(x0, x1, w, width, device)
        dy = local_offset(y0, y1, i, h, height, work)
        dx = local_offset(x0, x1, j, w, width, work)
        i = i - problem.origin[0]
        j = j - problem.origin[1]
        total = (y1 - y0) * (x1 - x0)
    else:
        assert problem.index is not None
        total = problem.index.shape[1]
    # Image after image; the last chunk repeats its last query until a product has enough rows.
    step = problem.chunk or CHUNK
    for image in range(source.shape[0]):
        for start in range(0, total, step):
            stop = min(start + step, total)
            query = torch.arange(start, max(stop, start + ROWS), device=device).clamp_(
                max=total - 1
            )
            if problem.window is not None:
                row = query // (x1 - x0)
                column = query % (x1 - x0)
                pixel = i[row] * columns + j[column]
                offset = torch.stack([dy[row], dx[column]], dim=1)
            else:
                assert problem.index is not None and problem.offset is not None
                pixel = problem.index[image][query]
                offset = problem.offset[image][query].to(work)
            yield Chunk(image, start, stop, pixel, F.pad(offset, (0, 1), value=problem.ratio))


class _Network:
    """The per-query network of one problem on chunks, forward and backward, with closed
    formulas.
    """

    def __init__(self, problem: Problem, source: Tensor, weights: Sequence[Tensor]) -> None:
        self.problem = problem
        self.source = source
        self.query = query_weights(weights)
        self.direct = content_weights(weights)
        self.width = self.query.width
        self.layers = self.query.layers
        self.interactive = not FORMULATIONS[problem.mode].recurrent_k
        # Sums and sine arguments have 32 bits at least.
        self.work = torch.float64 if source.dtype == torch.float64 else torch.float32
        self.wide = problem.form != "modulation"  # each hidden product yields k and s

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        """x [n, in] times weight [out, in] transposed: operands in the source's dtype, result in
        ``work``.
        """
        return torch.mm(x.to(self.source.dtype), weight.to(self.source.dtype).t()).to(self.work)

    def run(self, chunk: Chunk, keep: bool) -> tuple[Tensor, dict[str, list[Tensor]]]:
        """RGB [n, channels] of a chunk, and what its backward needs if ``keep``."""
        width = self.width
        kept: dict[str, list[Tensor]] = {"s": [], "k": [], "q": [], "x": [], "p": []}
        # What depends on the LR pixel alone, and the input of layer 0.
        c, p, extra = self.content(chunk)
        if keep:
            kept["x"] = extra
            kept["p"] = [p]
        s = torch.addmm(
            self.query.position_bias.to(self.work), p, self.query.position.to(self.work).t()
        )
        q = k = s  # replaced in the first layer
        for n in range(self.layers):
            # The sine argument, and the modulation's argument: content, and what the layer below
            # adds to it.
            own = c[:, n * width : (n + 1) * width].to(self.work)
            if n > 0:
                if self.interactive or not self.wide:
                    product = self.linear(q, self.query.hidden[n - 1])
                    recurrent = product[:, :-width]
                    s = product[:, -width:]
                else:
                    recurrent = self.linear(k, self.query.hidden[n - 1, :width])
                    s = self.linear(q, self.query.hidden[n - 1, width:])
                s = s + self.query.hidden_bias[n - 1].to(self.work)
                own = own + recurrent if self.wide else own
            k = torch.relu(own) if self.wide else own
            q = k * torch.sin(s)
            if keep:
                for name, value in (("s", s), ("k", k), ("q", q)):
                    kept[name].append(value)
        return self.linear(q, self.query.last) + self.query.last_bias.to(self.work), kept

    def content(self, chunk: Chunk) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Content [n, L*H] and position input of Q_0; in the direct form also [x, p'] for the
        backward.
        """
        direct = self.direct
        if direct is None:
            return self.source[chunk.image].flatten(0, 1)[chunk.pixel], chunk.position, []
        # [h, w, C, 3, 3], a view.
        taps = self.source[chunk.image].unfold(0, 3, 1).unfold(1, 3, 1)
        columns = taps.shape[1]
        x = taps[chunk.pixel // columns, chunk.pixel % columns].flatten(1)  # [n, 9C]
        p = chunk.position
        # With init_q, the sine layer's output takes the position's place and scales x.
        modulated = x
        if direct.first is not None:
            p = torch.sin(self.first_argument(direct, p))
            modulated = x * p
        c = self.linear(modulated, direct.content)
        bias = direct.content_bias
        return F.pad(c, (0, bias.shape[0] - c.shape[1])) + bias.to(self.work), p, [x, modulated]

    def first_argument(self, direct: ContentWeights, position: Tensor) -> Tensor:
        """Argument [n, 9C] of the sine layer of init_q."""
        assert direct.first is not None and direct.first_bias is not None
        return torch.addmm(
            direct.first_bias.to(self.work), position, direct.first.to(self.work).t()
        )

    def back(self, chunk: Chunk, grad: Tensor, sums: Gradients) -> None:
        """Add a chunk's gradients to ``sums``, given that of its output [n, channels] (surplus rows
        zero).
        """
        # Only the inputs were saved: s, k and q of all layers once more.
        width = self.width
        _, kept = self.run(chunk, keep=True)
        _add_product(sums.last, grad, kept["q"][-1])
        _add_sum(sums.last_bias, grad)
        dq = self.linear(grad, self.query.last.t())
        dk_next = torch.zeros_like(dq)  # gradient of k_n through the recurrence of modes 1 and 2
        dc = torch.empty(len(dq), self.layers * width, dtype=self.work, device=dq.device)
        for n in reversed(range(self.layers)):
            s = kept["s"][n]
            k = kept["k"][n]
            # Of q = k sin(s), and of k = relu(a) where k is not the source itself.
            ds = dq * k * torch.cos(s)
            dk = dq * torch.sin(s) + dk_next
            if self.wide:
                dk = dk * (k > 0)
            dc[:, n * width : (n + 1) * width] = dk
            if n == 0:
                break
            # The weights' gradients, and on to the layer below.
            weight = self.query.hidden[n - 1]
            q = kept["q"][n - 1]
            grad_weight = entry(sums.hidden, n - 1)
            _add_sum(entry(sums.hidden_bias, n - 1), ds)
            if self.interactive or not self.wide:
                both = torch.cat([dk, ds], dim=1) if self.wide else ds
                _add_product(grad_weight, both, q)
                dq = self.linear(both, weight.t())
            else:
                _add_product(entry(grad_weight, slice(0, width)), dk, kept["k"][n - 1])
                _add_product(entry(grad_weight, slice(width, None)), ds, q)
                dk_next = self.linear(dk, weight[:width].t())
                dq = self.linear(ds, weight[width:].t())
        _add_product(sums.position, ds, kept["p"][0])
        _add_sum(sums.position_bias, ds)
        self.content_back(chunk, dc, ds, kept["x"], kept["p"][0], sums)

    def content_back(
        self,
        chunk: Chunk,
        dc: Tensor,
        ds: Tensor,
        x: list[Tensor],
        p: Tensor,
        sums: Gradients,
    ) -> None:
        """Gradient of the content [n, L*H] down to the source (and the direct form's weights)."""
        direct = self.direct
        if direct is None:
            if sums.source is not None:
                add_rows(sums.source[chunk.image].flatten(0, 1), chunk.pixel, dc)
            return
        # The direct form: content weights, then the features of each query's neighbourhood.
        features, modulated = x
        _add_sum(sums.content_bias, dc)
        dc = dc[:, : len(direct.content)]
        _add_product(sums.content, dc, modulated)
        if sums.source is None and direct.first is None:
            return
        dx = self.linear(dc, direct.content.t())
        if direct.first is not None:
            dp = dx * features + self.linear(ds, self.query.position.t())
            dx = dx * p
            cosine = torch.cos(self.first_argument(direct, chunk.position))
            _add_product(sums.first, dp * cosine, chunk.position)
            _add_sum(sums.first_bias, dp * cosine)
        if sums.source is not None:
            # Tap by tap; in one of them each feature has its queries alone.
            padded = sums.source[chunk.image]  # [h+2, w+2, C]
            columns = padded.shape[1] - 2
            top_left = chunk.pixel // columns * (columns + 2) + chunk.pixel % columns
            taps = dx.view(len(dx), -1, 9)
            for tap in range(9):
                add_rows(
                    padded.flatten(0, 1),
                    top_left + tap // 3 * (columns + 2) + tap % 3,
                    taps[:, :, tap],
                )


def forward(problem: Problem, source: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """RGB of all queries, see `Backend.forward`."""
    network = _Network(problem, source, weights)
    batch = source.shape[0]
    out = source.new_empty(problem.output_shape(batch, network.query.channels))
    flat = out.flatten(2).transpose(1, 2) if problem.window is not None else out  # [B, N, channels]
    for chunk in _chunks(problem, source):
        rgb, _ = network.run(chunk, keep=False)
        flat[chunk.image, chunk.start : chunk.stop] = rgb[: chunk.stop - chunk.start].to(out.dtype)
    return out


def backward(
    problem: Problem, grad: Tensor, source: Tensor, weights: Sequence[Tensor], needs: Sequence[bool]
) -> list[Tensor]:
    """Gradients of [source, *weights] (empty tensors where not needed), summed chunk after chunk in
    fixed order.
    """
    network = _Network(problem, source, weights)
    inputs = [source, *weights]
    sums = Gradients.zeros(inputs, needs, network.work)
    # [B, N, channels]
    flat = grad.flatten(2).transpose(1, 2) if problem.window is not None else grad
    for chunk in _chunks(problem, source):
        rows = flat[chunk.image, chunk.start : chunk.stop].to(network.work)
        network.back(chunk, F.pad(rows, (0, 0, 0, len(chunk.pixel) - len(rows))), sums)
    return sums.like(inputs)


def conv3x3(padded: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """3x3 convolution of ``[B, h+2, w+2, C]`` by ``[out, 9C]`` (columns c*9 + tap), as one
    product.
    """
    channels = padded.shape[-1]
    # [B, h, w, 3, 3, C], a view; tap-major, so that gathering copies runs of C features.
    taps = padded.unfold(1, 3, 1).unfold(2, 3, 1).permute(0, 1, 2, 4, 5, 3)
    tap_major = weight.view(-1, channels, 9).transpose(1, 2).flatten(1)
    return linear(taps.flatten(3), tap_major) + bias


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x ``[..., in]`` times weight ``[out, in]`` transposed, with at least ROWS rows."""
    rows = x.flatten(0, -2)
    padded = F.pad(rows, (0, 0, 0, max(0, ROWS - len(rows))))
    return torch.mm(padded, weight.t())[: len(rows)].view(*x.shape[:-1], len(weight))


def _add_product(total: Tensor | None, grad: Tensor, x: Tensor) -> None:
    """total [out, in] += grad [n, out] transposed times x [n, in]."""
    if total is not None:
        total.addmm_(grad.t(), x.to(grad.dtype))


def _add_sum(total: Tensor | None, grad: Tensor) -> None:
    if total is not None:
        total += grad.sum(0)
