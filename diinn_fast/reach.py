"""How far modules look: at a pixel, as far as a convolution's kernel, or at the whole picture."""

from __future__ import annotations

from torch import nn
from torch.nn.utils.parametrize import type_before_parametrizations

WHOLE = (
    nn.GroupNorm,
    nn.LayerNorm,
    nn.MultiheadAttention,
    nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
)
"""PyTorch's modules that look at the whole picture."""
LOCAL = (
    nn.modules.activation.__name__,
    nn.modules.container.__name__,
    nn.modules.dropout.__name__,
    f"{nn.__name__}.utils.parametrize",
)
"""Where the classes are that look at pixels alone."""


def whole_picture(module: nn.Module) -> bool:
    """Whether a module looks at the whole picture, as far as is known."""
    if isinstance(module, nn.modules.batchnorm._NormBase):
        return module.training or module.running_mean is None
    return isinstance(module, WHOLE)


def known(module: nn.Module) -> bool:
    """Whether a module is sure to look no further than its convolutions' kernels say."""
    if whole_picture(module):
        return False
    kind = type_before_parametrizations(module)
    if kind in (nn.Conv2d, nn.Identity) or isinstance(module, nn.modules.batchnorm._NormBase):
        return True
    return kind.__module__ in LOCAL or kind.__module__.startswith("diinn_fast.")
