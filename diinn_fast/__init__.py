"""diinn_fast: arbitrary-scale image super-resolution with DIINN, exact and fast."""

from diinn_fast.backends import use_backend
from diinn_fast.decoder import ImplicitDecoder
from diinn_fast.errors import (
    BackendError,
    CheckpointError,
    DataError,
    DivergedError,
    EditError,
    Error,
    ExportError,
    ImageError,
    UnfinishedError,
    UpscaleError,
)
from diinn_fast.graphed import Graphed
from diinn_fast.inference import Upscaler, View, render, upscale
from diinn_fast.inference import open as open  # not in __all__: `import *` keeps the built-in
from diinn_fast.loading import load_model
from diinn_fast.model import DIINN
from diinn_fast.version import __version__

__all__ = [
    "DIINN",
    "BackendError",
    "CheckpointError",
    "DataError",
    "DivergedError",
    "EditError",
    "Error",
    "ExportError",
    "Graphed",
    "ImageError",
    "ImplicitDecoder",
    "UnfinishedError",
    "UpscaleError",
    "Upscaler",
    "View",
    "__version__",
    "load_model",
    "render",
    "upscale",
    "use_backend",
]
