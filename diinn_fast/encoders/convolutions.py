"""How convolutions are run: memory layout, and sums that do not depend on the image's size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diinn_fast import guard
from diinn_fast.geometry import Window

WIDEST = 256
"""Input channels that one 3x3 convolution sums for inference on the CPU. With more than 320 the
convolution library splits the sum at places that depend on the image's width, and tiles of an image
would differ in the last bit.
"""

LEAST_PIXELS = 1024
"""Fewest pixels of a tile (the whole of a smaller image): below 20480 numbers PyTorch takes another
convolution, which sums in another order."""


def conv3x3(in_channels: int, out_channels: int) -> nn.Conv2d:
    """A 3x3 convolution that keeps the grid: zero padding, stride 1."""
    return nn.Conv2d(in_channels, out_channels, 3, padding=1)


def fast_layout(x: Tensor) -> Tensor:
    """The image in channels_last where convolutions are faster in it; every layer after the first
    then keeps it.

    On the CPU the convolution library needs no reordering of its inputs and outputs then, and the
    1x1 convolutions of RDN do not depend on the image's size to the last bit (they do in the
    default layout). It sums in fewer, longer chains, so that the relative L2 error is up to 1.9
    times that of the default layout. On a GPU the 16-bit kernels want it, also those that autocast
    chooses. float64 has no such library on the CPU and stays as it is, and so does a tensor that a
    transform sees, since not all of them know memory formats.
    """
    if guard.transform(x):
        return x
    half = x.element_size() == 2 or torch.is_autocast_enabled(x.device.type)
    fast = x.dtype != torch.float64 if x.device.type == "cpu" else x.is_cuda and half
    return x.contiguous(memory_format=torch.channels_last) if fast else x


def use_fast_weights(encoder: nn.Module) -> nn.Module:
    """The encoder itself, its weights in channels_last: as its activations are, so that no call
    reorders them.
    """
    result: nn.Module = encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return result


def sum_of_convs(parts: list[Tensor], conv: nn.Conv2d) -> Tensor:
    """``conv(cat(parts))``, one part after the other."""
    weight = conv.weight  # read once: a parametrization is computed at every reading
    total = bias_image(conv, weight)
    start = 0
    for part in parts:
        own = weight[:, start : start + part.shape[1]]
        total = add(F.conv2d(part, own, padding=conv.padding), total)
        start += part.shape[1]
    return total


def bias_image(conv: nn.Conv2d, weight: Tensor) -> Tensor:
    """The bias as ``[1, out, 1, 1]``, zeros if there is none."""
    bias = conv.bias  # read once, as the weight is
    return (weight.new_zeros(weight.shape[0]) if bias is None else bias).view(1, -1, 1, 1)


def add(product: Tensor, total: Tensor) -> Tensor:
    """Their sum, in product's place unless autocast made it narrower."""
    return product.add_(total) if product.dtype == total.dtype else product + total


def residual(body: nn.Module, x: Tensor) -> Tensor:
    """``body(x) + x``, in place where nobody else can have what the body gave: another last layer
    may give its input, and a hook may keep its output.
    """
    out: Tensor = body(x)
    edit = guard.transform(x) or guard.layer_edit(body, nn.Sequential)
    last = None if edit else next(reversed(body._modules.values()), None)
    fresh = last is not None and guard.layer_edit(last, nn.Conv2d) is None
    return add(out, x) if fresh else out + x


def with_halo(window: Sequence[int], lr: tuple[int, int], radius: int) -> Window:
    """An LR window with ``radius`` pixels around it, as far as there are any; more if it is tiny.

    For with fewer than LEAST_PIXELS the encoder's sums would be in another order.
    """
    h, w = lr
    i0, i1, j0, j1 = window
    while True:
        grown = Window(
            max(i0 - radius, 0), min(i1 + radius, h), max(j0 - radius, 0), min(j1 + radius, w)
        )
        if grown.shape[0] * grown.shape[1] >= min(LEAST_PIXELS, h * w):
            return grown
        radius += 4
