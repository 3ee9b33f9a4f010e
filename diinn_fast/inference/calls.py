"""The three ways to a larger picture as one call each, with a model by name, file or object."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from diinn_fast.inference.engine import EngineOptions
from diinn_fast.inference.progress import Progress
from diinn_fast.inference.ranges import DTYPE, Asked
from diinn_fast.inference.sizes import TargetSize
from diinn_fast.inference.upscaler import Upscaler
from diinn_fast.inference.view import View
from diinn_fast.metadata import KEEP
from diinn_fast.model import DIINN

if TYPE_CHECKING:
    from typing import Unpack

Model = DIINN | str | os.PathLike[str] | None
"""A DIINN, a bundled model's name, a model folder or a checkpoint file; None: the default one."""


def upscale(
    image: Any,
    *,
    model: Model = None,
    progress: Progress = False,
    metadata: str = KEEP,
    range: Asked = DTYPE,
    wrap: bool = False,
    bands: str | None = None,
    device: str | torch.device | None = None,
    precision: str | None = None,
    backend: str | None = None,
    self_ensemble: bool = False,
    **target: Unpack[TargetSize],
) -> Any:
    """The picture at another size: ``Upscaler(model, ...)(image, **target)``.

    ``model``, ``device``, ``precision``, ``backend`` and ``self_ensemble`` are those of `Upscaler`,
    the others those of its call. A tensor on a GPU is upscaled there unless a device is given.
    """
    on_gpu = isinstance(image, Tensor) and image.is_cuda
    if on_gpu and device is None and not isinstance(model, DIINN):
        device = image.device
    upscaler = Upscaler(
        model, device=device, precision=precision, backend=backend, self_ensemble=self_ensemble
    )
    return upscaler(
        image,
        progress=progress,
        metadata=metadata,
        range=range,
        wrap=wrap,
        bands=bands,
        **target,
    )


class RenderOptions(TargetSize, total=False):
    """Arguments of `Upscaler.render`."""

    max_memory: int | str | None
    halo: int | None
    resume: bool
    overwrite: bool
    pyramid: bool
    compress: bool
    metadata: str
    range: Asked
    wrap: bool
    bands: str | None
    progress: Progress


def render(
    picture: Any,
    out: str | os.PathLike[str],
    *,
    model: Model = None,
    device: str | torch.device | None = None,
    precision: str | None = None,
    backend: str | None = None,
    **options: Unpack[RenderOptions],
) -> Path:
    """Upscale into a file of any size: ``Upscaler(model, ...).render(picture, out, **options)``.

    ``model``, ``device``, ``precision`` and ``backend`` are those of `Upscaler`, the others those
    of `Upscaler.render`.
    """
    upscaler = Upscaler(model, device=device, precision=precision, backend=backend)
    return upscaler.render(picture, out, **options)


def open(
    picture: Any,
    model: Model = None,
    *,
    max_features: int | str = "1GiB",
    range: Asked = DTYPE,
    **options: Unpack[EngineOptions],
) -> View:
    """A picture of which any window can be rendered at any size:
    ``Upscaler(model, **options).open(picture)``.

    ``model`` and ``options`` (device, precision, backend) are those of `Upscaler`, ``max_features``
    and ``range`` those of `Upscaler.open`.
    """
    return Upscaler(model, **options).open(picture, max_features=max_features, range=range)
