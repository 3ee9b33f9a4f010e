"""diinn_fast: arbitrary-scale image super-resolution with DIINN, exact and fast."""

from diinn_fast.backends import BackendError, use_backend
from diinn_fast.decoder import ImplicitDecoder
from diinn_fast.graphed import Graphed
from diinn_fast.imageio import ImageError
from diinn_fast.inference import UpscaleError, Upscaler, View, open, render, upscale
from diinn_fast.model import DIINN, CheckpointError
from diinn_fast.version import __version__

__all__ = [
    "DIINN",
    "BackendError",
    "CheckpointError",
    "Graphed",
    "ImageError",
    "ImplicitDecoder",
    "UpscaleError",
    "Upscaler",
    "View",
    "__version__",
    "open",
    "render",
    "upscale",
    "use_backend",
]
