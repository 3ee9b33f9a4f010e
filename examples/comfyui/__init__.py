"""A ComfyUI node: enlarge images by any factor, or to any size.

Copy this folder to ``ComfyUI/custom_nodes/diinn`` and install the package into ComfyUI's
environment (there, ``python -m pip install`` and the folder of the clone). The whole picture is
enlarged in exact windows, so that no seams are blended.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diinn_fast import Upscaler


@lru_cache(maxsize=2)
def _upscaler(weights: str) -> Upscaler:
    return Upscaler(weights or None)


class DIINNUpscale:
    """Images ``[B, H, W, C]`` in [0, 1] to the same, larger; C is 3, or 4 with alpha, or 1."""

    CATEGORY = "image/upscaling"
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "upscale"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """What ComfyUI shows; width and height of 0 mean: by the factor."""
        side = ("INT", {"default": 0, "min": 0, "max": 16384})
        return {
            "required": {
                "image": ("IMAGE",),
                "factor": ("FLOAT", {"default": 4.0, "min": 1.0, "max": 64.0, "step": 0.1}),
                "width": side,
                "height": side,
                "weights": ("STRING", {"default": ""}),
            }
        }

    def upscale(
        self, image: Tensor, factor: float, width: int, height: int, weights: str
    ) -> tuple[Tensor]:
        """Enlarge; with one of width and height given, the other keeps the aspect."""
        h, w = image.shape[1:3]
        size: tuple[int, int] | None = None
        if width or height:
            rows = height or max(1, round(h * width / w))
            columns = width or max(1, round(w * height / h))
            size = (rows, columns)
        upscaler = _upscaler(weights)
        # What other nodes leave beyond [0, 1] would be cut off when it is shown or saved, too.
        pictures = image.clamp(0, 1).cpu().numpy()
        # One picture at a time: its features are what takes memory.
        large = [upscaler(each, scale=None if size else factor, size=size) for each in pictures]
        return (torch.from_numpy(np.stack(large)),)


NODE_CLASS_MAPPINGS = {"DIINNUpscale": DIINNUpscale}
NODE_DISPLAY_NAME_MAPPINGS = {"DIINNUpscale": "Upscale by DIINN (any scale)"}
