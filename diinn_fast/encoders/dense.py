"""A residual dense block with gradients on the CPU: a third fewer seconds and a fifth of the memory
of its modules.

The features of a dense block are read by all convolutions after them. Here each is brought to
Winograd's points once, into one buffer, so that a convolution is one batched product of the
buffer's first channels, and nothing is concatenated. The backward adds to one buffer likewise. It
keeps the block's features, nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diinn_fast import guard
from diinn_fast.encoders.winograd import OUTER, Tiling, kernel_at_points, kernel_gradient

POINTS = OUTER**2
threshold_backward = torch.ops.aten.threshold_backward
"""The gradient of a ReLU by that of what it gave: one pass."""


class Growth(NamedTuple):
    """A 3x3 convolution and a ReLU on all features before it."""

    weight: Tensor  # [G, channels before, 3, 3]
    bias: Tensor | None


class Fusion(NamedTuple):
    """A 1x1 convolution of all features."""

    weight: Tensor  # [C, channels, 1, 1]
    bias: Tensor | None


def supported(x: Tensor) -> bool:
    """Whether `dense_block` takes ``x``: in full precision on the CPU, not compiled or traced."""
    return (
        not torch.jit.is_tracing()  # first: a trace records what is asked of x
        and type(x) in guard.ORDINARY  # what stands for a tensor is no help to cached matrices
        and not torch.is_inference_mode_enabled()  # whatever it says of gradients
        and x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
        and x.numel() > 0
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def dense_block(x: Tensor, convolutions: Sequence[nn.Conv2d], fusion: nn.Conv2d) -> Tensor:
    """``x + fusion([x, f_1, ..., f_n])`` with ``f_i = relu(conv_i([x, f_1, ..., f_{i-1}]))``."""
    steps = [value for conv in convolutions for value in (conv.weight, conv.bias)]
    out: Tensor = _DenseBlock.apply(  # type: ignore[no-untyped-call]
        x, fusion.weight, fusion.bias, *steps
    )
    return out


def literal(x: Tensor, fusion: Fusion, steps: Sequence[Growth]) -> Tensor:
    """The same by PyTorch's convolutions, as the paper writes it."""
    features = x
    for step in steps:
        grown = F.relu(F.conv2d(features, step.weight, step.bias, padding=1))
        features = torch.cat([features, grown], dim=1)
    return F.conv2d(features, fusion.weight, fusion.bias) + x


class _DenseBlock(torch.autograd.Function):
    """Inputs: x, the fusion's weight and bias, then weight and bias of each step."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *values: Tensor | None) -> Tensor:
        fusion, steps = _named(values)
        image = x.permute(0, 2, 3, 1)
        grown = _grow(image, steps)
        ctx.save_for_backward(x, grown, *values)
        return _fuse(image, grown, fusion).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        x, grown, *values = ctx.saved_tensors
        if torch.is_grad_enabled() or guard.batched(grad):
            # a second derivative is asked for, or many gradients at once
            return _differentiable(grad, [x, *values], ctx.needs_input_grad)
        fusion, steps = _named(values)
        image = x.permute(0, 2, 3, 1)
        gradients = _Gradients(grad.permute(0, 2, 3, 1), image, grown)
        found = [*gradients.of_fusion(fusion), *gradients.of_steps(steps)]
        dx = gradients.dx.permute(0, 3, 1, 2)
        return tuple(
            value if need else None
            for value, need in zip([dx, *found], ctx.needs_input_grad, strict=True)
        )


def _named(values: Sequence[Tensor | None]) -> tuple[Fusion, list[Growth]]:
    fusion_weight, fusion_bias, *rest = values
    assert fusion_weight is not None
    steps = []
    for weight, bias in zip(rest[::2], rest[1::2], strict=True):
        assert weight is not None
        steps.append(Growth(weight, bias))
    return Fusion(fusion_weight, fusion_bias), steps


def _grow(image: Tensor, steps: Sequence[Growth]) -> Tensor:
    """The features f_1 to f_n ``[B, H, W, n*G]`` of x."""
    tiling = Tiling(*image.shape[:3])
    end = image.shape[-1]
    grown = image.new_empty(*tiling, sum(len(step.weight) for step in steps))
    # what the last step reads, at Winograd's points
    at_points = image.new_empty(POINTS, tiling.tiles, steps[-1].weight.shape[1])
    at_points[:, :, :end] = tiling.at_points(image)
    first = 0
    for n, step in enumerate(steps):
        kernel = kernel_at_points(step.weight)
        sums = tiling.from_points(torch.bmm(at_points[:, :, :end], kernel))
        last = first + len(step.weight)
        feature = grown[..., first:last]
        torch.clamp(sums if step.bias is None else sums.add_(step.bias), min=0, out=feature)
        first = last
        if n + 1 < len(steps):
            at_points[:, :, end : end + len(step.weight)] = tiling.at_points(feature)
            end += len(step.weight)
    return grown


def _fuse(image: Tensor, grown: Tensor, fusion: Fusion) -> Tensor:
    channels = image.shape[-1]
    matrix = fusion.weight.flatten(1)
    out = torch.mm(grown.view(-1, grown.shape[-1]), matrix[:, channels:].t())
    out.addmm_(image.reshape(-1, channels), matrix[:, :channels].t())
    out = out.view(image.shape).add_(image)
    return out if fusion.bias is None else out.add_(fusion.bias)


class _Gradients:
    """Gradients of one block, by ``grad`` of its output; ``dx`` is complete after the steps."""

    def __init__(self, grad: Tensor, image: Tensor, grown: Tensor) -> None:
        self.flat = grad.reshape(-1, grad.shape[-1])
        self.image = image
        self.grown = grown
        self.tiling = Tiling(*image.shape[:3])
        self.dx = grad
        self.dgrown = grown.new_empty(0)

    def of_fusion(self, fusion: Fusion) -> tuple[Tensor, Tensor]:
        """Of its weight and bias; begins dx and the gradients of the features."""
        channels = self.image.shape[-1]
        matrix = fusion.weight.flatten(1)
        self.dgrown = torch.mm(self.flat, matrix[:, channels:]).view(self.grown.shape)
        self.dx = self.dx + torch.mm(self.flat, matrix[:, :channels]).view(self.image.shape)
        features = (self.image.reshape(-1, channels), self.grown.view(-1, self.grown.shape[-1]))
        weight = torch.cat([torch.mm(self.flat.t(), part) for part in features], dim=1)
        # in the weight's own strides, as distributed training wants it
        like = torch.empty_like(fusion.weight)
        return like.copy_(weight.view(like.shape)), self.flat.sum(0)

    def of_steps(self, steps: Sequence[Growth]) -> list[Tensor]:
        """Of weight and bias of each step, the last step first in time."""
        tiling = self.tiling
        inputs = self._at_points(steps)
        dinputs = torch.empty_like(inputs)
        found: list[Tensor] = []
        end = self.grown.shape[-1]
        for step in reversed(steps):
            start = end - len(step.weight)
            channels = step.weight.shape[1]
            # a feature's gradient: by the fusion, and by all later steps, which lies at the points
            grad = self.dgrown[..., start:end]
            if found:
                later = dinputs[:, :, channels : channels + len(step.weight)]
                grad = grad + tiling.image_gradient(later)
            grad = threshold_backward(grad, self.grown[..., start:end], 0)
            dsums = tiling.sums_gradient(grad)
            dkernel = torch.bmm(inputs[:, :, :channels].transpose(1, 2), dsums)
            # the last step reads all features: its gradient begins the sums
            kernel = kernel_at_points(step.weight).transpose(1, 2)
            if found:
                dinputs[:, :, :channels].baddbmm_(dsums, kernel)
            else:
                torch.bmm(dsums, kernel, out=dinputs)
            found = [kernel_gradient(dkernel), grad.sum((0, 1, 2)), *found]
            end = start
        self.dx = self.dx + tiling.image_gradient(dinputs[:, :, : self.image.shape[-1]])
        return found

    def _at_points(self, steps: Sequence[Growth]) -> Tensor:
        """What the steps read, at Winograd's points: computed again rather than kept."""
        channels = self.image.shape[-1]
        tiling = self.tiling
        inputs = self.image.new_empty(POINTS, tiling.tiles, steps[-1].weight.shape[1])
        inputs[:, :, :channels] = tiling.at_points(self.image)
        end = channels
        for step in steps[:-1]:
            width = len(step.weight)
            feature = self.grown[..., end - channels : end - channels + width]
            inputs[:, :, end : end + width] = tiling.at_points(feature)
            end += width
        return inputs


def _differentiable(
    grad: Tensor, inputs: Sequence[Tensor | None], needs: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """Gradients as a function that PyTorch can differentiate."""
    with torch.enable_grad():
        x, *values = inputs
        assert x is not None
        out = literal(x, *_named(values))
        wanted = [v for v, need in zip(inputs, needs, strict=True) if need and v is not None]
        found = iter(torch.autograd.grad(out, wanted, grad, create_graph=True))
    return tuple(next(found) if need else None for need in needs)
