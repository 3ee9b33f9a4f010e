"""From a picture of any kind to a larger one of the same kind, with a bundled or given model."""

from diinn_fast.errors import UpscaleError
from diinn_fast.inference.calls import open, render, upscale
from diinn_fast.inference.sizes import target_size
from diinn_fast.inference.upscaler import Upscaler
from diinn_fast.inference.view import View
from diinn_fast.loading import load_weights

__all__ = [
    "UpscaleError",
    "Upscaler",
    "View",
    "load_weights",
    "open",
    "render",
    "target_size",
    "upscale",
]
