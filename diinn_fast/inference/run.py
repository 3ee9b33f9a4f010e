"""Upscaling: encode once, decode in bands of rows straight into the output."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from diinn_fast import backends
from diinn_fast.encoders import cost_of, use_fast_weights
from diinn_fast.errors import UpscaleError
from diinn_fast.formats import Image
from diinn_fast.geometry import MAX_LENGTH, Window
from diinn_fast.inference.bicubic import resize_bicubic
from diinn_fast.inference.bleed import bleed_alpha
from diinn_fast.inference.devices import PRECISIONS, pick_device, pick_precision
from diinn_fast.inference.kinds import as_request
from diinn_fast.inference.memory import check_memory
from diinn_fast.inference.sizes import target_size, warn_of_scale
from diinn_fast.loading import load_weights
from diinn_fast.model import DIINN
from diinn_fast.problem import Problem

log = logging.getLogger("diinn_fast")

BAND_PIXELS = 1 << 19
"""Output pixels decoded at a time: about a second's work of a CPU, a few MiB of floats."""

DEVICE_BAND_PIXELS = 1 << 22
"""The same on a GPU: some ten milliseconds' work, after which the host looks at the numbers and
takes them.
"""


def upscale(
    image: Any,
    *,
    scale: float | Sequence[float] | None = None,
    size: Sequence[int] | None = None,
    long_side: int | None = None,
    model: DIINN | str | os.PathLike[str] | None = None,
    device: str | torch.device | None = None,
    precision: str | None = None,
    backend: str | None = None,
    self_ensemble: bool = False,
    progress: bool = False,
) -> Any:
    """The picture at another size, as the same kind as it was given (a path gives an
    `Image`).

    Args:
        image: a path; an `Image`; a PIL image; an array [h, w], [h, w, 3] or [h, w, 4] of
            uint8, uint16 or float in [0, 1]; a float tensor [3, h, w] or [B, 3, h, w] in [0, 1].
        scale: factor, one number or one per axis (y, x); 4 if nothing else is given. Any positive
            number.
        size: exact output (height, width).
        long_side: longer side of the output in pixels, keeping the aspect ratio.
        model: a DIINN, a bundled model's name, a model folder or a checkpoint file; default: the
            bundled model.
        device: "cpu", "cuda", "cuda:1", "mps"; default: the given model's or tensor's, else CUDA if
            there is any.
        precision: "fp32", "bf16" or "fp16" (autocast of encoder and decoder); default: fp16 on
            CUDA, else fp32.
        backend: see ``diinn_fast.use_backend``.
        self_ensemble: mean over the 8 flips and transposes: slightly better, 8 times the work.
        progress: show a bar on stderr.

    Alpha is resized bicubically, and colour is bled under transparent pixels before the network
    sees them. Grey stays grey. Bit depth, ICC profile and dpi are kept; with dpi unscaled, the
    print grows with the pixels.

    Raises:
        UpscaleError: a request that cannot be met. CheckpointError, ImageError, BackendError:
            likewise.
        FloatingPointError: the network's output is not finite (fp16 can overflow).
    """
    if (
        device is None
        and isinstance(image, Tensor)
        and image.is_cuda
        and not isinstance(model, DIINN)
    ):
        device = image.device
    upscaler = Upscaler(
        model, device=device, precision=precision, backend=backend, self_ensemble=self_ensemble
    )
    return upscaler(image, scale=scale, size=size, long_side=long_side, progress=progress)


class Upscaler:
    """A model made ready once, for any number of pictures; arguments as of `upscale`.

    After a call, ``used_backend`` names the backend that decoded.
    """

    def __init__(
        self,
        model: DIINN | str | os.PathLike[str] | None = None,
        *,
        device: str | torch.device | None = None,
        precision: str | None = None,
        backend: str | None = None,
        self_ensemble: bool = False,
    ) -> None:
        self.backend = backends.requested() if backend is None else backends.check_name(backend)
        if self.backend != "auto" and (reason := backends.load(self.backend).unavailable()):
            raise backends.BackendError(f"backend {self.backend!r} cannot run: {reason}")
        given = (
            next(model.parameters()).device
            if isinstance(model, DIINN) and device is None
            else device
        )
        self.device = pick_device(given)
        self.dtype = pick_precision(precision, self.device)
        self.self_ensemble = self_ensemble
        self.used_backend = ""
        if not isinstance(model, DIINN):
            self.model = load_weights(model).to(self.device)
        elif model.training or any(
            p.device != self.device or p.dtype != torch.float32 for p in model.parameters()
        ):
            self.model = (
                copy.deepcopy(model).to(self.device, torch.float32).eval()
            )  # the caller's stays as it is
        else:
            self.model = model
        if self.model is not model and self.device.type == "cuda" and self.dtype != torch.float32:
            use_fast_weights(self.model.encoder)
        name = next(name for name, dtype in PRECISIONS.items() if dtype == self.dtype)
        log.info("mode %d model on %s in %s", self.model.decoder.mode, self.device, name)

    def __call__(
        self,
        image: Any,
        *,
        scale: float | Sequence[float] | None = None,
        size: Sequence[int] | None = None,
        long_side: int | None = None,
        progress: bool = False,
    ) -> Any:
        """The picture at another size; see `upscale`."""
        request = as_request(image)
        lr = request.images[0].rgb.shape[-2:]
        hr = target_size(lr, scale=scale, size=size, long_side=long_side)
        self.check(lr, hr, request.images, request.dtype)
        return request.finish(
            [self._upscale(picture, hr, request.dtype, progress) for picture in request.images]
        )

    def check(
        self, lr: Sequence[int], hr: tuple[int, int], images: list[Image], dtype: torch.dtype
    ) -> None:
        """Refuse before the work what cannot be done in memory, and warn once of a scale that was
        not learnt.
        """
        height, width = lr
        samples = sum(
            (1 if i.grey else 3) * dtype.itemsize + (4 if i.alpha is not None else 0)
            for i in images
        )
        ensemble = 12 if self.self_ensemble else 0
        bytes_out = hr[0] * hr[1] * (samples + ensemble)
        item = self.dtype.itemsize
        decoder = self.model.decoder
        self.check_sizes(lr, hr)
        check_memory(
            self.model.encoder, decoder.in_channels, (height, width), bytes_out, self.device, item
        )
        warn_of_scale((height, width), hr, self.model.trained_scales)

    def check_sizes(self, lr: Sequence[int], hr: tuple[int, int]) -> None:
        """Refuse sizes that cannot be done at all, and choose the backend."""
        height, width = lr
        if not (1 <= height <= MAX_LENGTH and 1 <= width <= MAX_LENGTH):
            raise UpscaleError(f"a picture of {width}x{height} pixels cannot be upscaled")
        decoder = self.model.decoder
        if min(hr) < decoder.formulation.least_side:
            raise UpscaleError(
                f"a mode {decoder.mode} model needs an output of at least 2x2 pixels, "
                f"not {hr[1]}x{hr[0]}"
            )
        self.used_backend = self._choose_backend((height, width), hr)
        log.info("%dx%d to %dx%d by backend %s", width, height, hr[1], hr[0], self.used_backend)

    def bands(
        self, rgb: Tensor, hr: tuple[int, int], rows: int | None = None, bar: tqdm | None = None
    ) -> Iterator[tuple[int, Tensor]]:
        """The output of an LR picture ``[3, h, w]`` in [0, 1] from top to bottom: (first row,
        ``[3, n, W]``).

        Each has ``n <= rows`` rows (all at once with self_ensemble), float32 in [0, 1], on the
        device; the pixels do not depend on ``rows``. ``bar`` is told of every pixel decoded.
        """
        parts = (
            self._ensemble(rgb, hr, bar) if self.self_ensemble else self._decode(rgb, hr, rows, bar)
        )
        for y, band in parts:
            yield y, to_unit(band)

    @torch.inference_mode()
    def _decode(
        self, rgb: Tensor, hr: tuple[int, int], rows: int | None, bar: tqdm | None
    ) -> Iterator[tuple[int, Tensor]]:
        """Bands of the network's raw output, in [-1, 1] or slightly beyond."""
        height, width = hr
        most = BAND_PIXELS if self.device.type == "cpu" else DEVICE_BAND_PIXELS
        step = rows or max(1, most // width)
        features = self.encode(rgb)
        for y in range(0, height, step):
            band = self.decode(features, hr, (y, min(y + step, height), 0, width))
            if bar is not None:
                bar.update(band[0].numel())
            yield y, band

    @torch.inference_mode()
    def encode(self, rgb: Tensor, work_bytes: int | None = None) -> Tensor:
        """Features ``[1, C, h, w]`` of an LR picture ``[3, h, w]`` in [0, 1]; ``work_bytes`` as of
        `encoders.Cost`.
        """
        # One memory layout for all inputs: convolutions round differently in another.
        x = rgb.to(self.device, torch.float32).contiguous()[None]
        encoder = self.model.encoder
        bounded = work_bytes is not None and cost_of(encoder).shares
        limit = {"work_bytes": work_bytes} if bounded else {}
        with self._arithmetic():
            return encoder((x - 0.5) / 0.5, **limit)

    @torch.inference_mode()
    def decode(
        self,
        features: Tensor,
        hr: tuple[int, int],
        window: Sequence[int],
        tile: tuple[tuple[int, int], tuple[int, int]] | None = None,
    ) -> Tensor:
        """The network's raw output ``[3, rows, columns]`` in a window; ``tile`` as of
        `ImplicitDecoder.forward`.

        In [-1, 1] or slightly beyond; FloatingPointError if it is not finite.
        """
        with self._arithmetic():
            band = self.model.decoder(features, hr, window=window, tile=tile, backend=self.backend)
        band = band[0].float()
        if not torch.isfinite(band).all():
            raise FloatingPointError(self._not_finite())
        return band

    @torch.inference_mode()
    def _ensemble(
        self, rgb: Tensor, hr: tuple[int, int], bar: tqdm | None
    ) -> Iterator[tuple[int, Tensor]]:
        """The mean over the 8 symmetries of the square, of the raw outputs turned back, as one
        band.
        """
        total = torch.zeros(3, *hr, device=self.device)
        for symmetry in range(8):
            transposed = symmetry & 4
            flipped = [d for d in (1, 2) if symmetry & d]
            picture = rgb.transpose(1, 2) if transposed else rgb
            part = total.transpose(1, 2) if transposed else total
            height, width = part.shape[1:]
            for y, band in self._decode(picture.flip(flipped), (height, width), None, bar):
                stop = y + band.shape[1]
                place = slice(height - stop, height - y) if 1 in flipped else slice(y, stop)
                part[:, place] += band.flip(flipped)
        yield 0, total.div_(8)

    def _upscale(
        self, picture: Image, hr: tuple[int, int], dtype: torch.dtype, progress: bool
    ) -> Tensor:
        """Planes ``[C, H, W]`` of dtype, on the CPU; colour (or grey), then alpha."""
        rgb = picture.rgb
        colours = 1 if picture.grey else 3
        if picture.alpha is not None:
            rgb = bleed_alpha(rgb, picture.alpha)
        out = torch.empty(colours + (picture.alpha is not None), *hr, dtype=dtype)
        if picture.alpha is not None:
            for y in range(0, hr[0], step := max(1, BAND_PIXELS // hr[1])):
                window = Window(y, min(y + step, hr[0]), 0, hr[1])
                store(out[colours:, y : window.y1], resize_bicubic(picture.alpha, hr, window))
        pixels = hr[0] * hr[1] * (8 if self.self_ensemble else 1)
        with tqdm(
            total=pixels, unit="px", unit_scale=True, delay=1, leave=False, disable=not progress
        ) as bar:
            for y, band in self.bands(rgb, hr, bar=bar):
                band = band.mean(0, keepdim=True) if picture.grey else band
                store(out[:colours, y : y + band.shape[1]], band)
        return out

    @contextmanager
    def _arithmetic(self) -> Iterator[None]:
        """Autocast in 16 bit; in fp32 float32 throughout, also for CUDA's convolutions, by default
        in TF32.
        """
        half = self.dtype != torch.float32
        conv = torch.backends.cudnn.conv  # type: ignore[attr-defined]
        before = conv.fp32_precision
        try:
            if self.device.type == "cuda" and not half:
                conv.fp32_precision = "ieee"
            with torch.autocast(self.device.type, dtype=self.dtype if half else None, enabled=half):
                yield
        finally:
            if conv.fp32_precision != before:
                conv.fp32_precision = before

    def _choose_backend(self, lr: tuple[int, int], hr: tuple[int, int]) -> str:
        """Name of the backend that will decode; BackendError if the one asked for cannot."""
        decoder = self.model.decoder
        form = decoder.formulation.form(lr, hr[0] * hr[1])
        if form == "direct":
            shape = (1, 3, 3, decoder.in_channels)
        else:
            shape = (1, 1, 1, len(decoder.K) * decoder.width)
        problem = Problem(form, decoder.mode, lr, (0, 0), hr, None, None, None, 0)
        source = torch.empty(shape, dtype=self.dtype, device=self.device)
        return backends.choose(self.backend, problem, source).__name__.rpartition(".")[2]

    def _not_finite(self) -> str:
        name = next(n for n, dtype in PRECISIONS.items() if dtype == self.dtype)
        if name == "fp32":
            return (
                "the network gave NaN or infinity in fp32: its weights do not suit this "
                "picture, try other weights"
            )
        return (
            f'the network gave NaN or infinity in {name}: use --precision fp32 (precision="fp32")'
        )


def to_unit(band: Tensor) -> Tensor:
    """The network's raw output in [0, 1]."""
    return (band * 0.5 + 0.5).clamp_(0, 1)


def store(target: Tensor, band: Tensor) -> None:
    """Write samples in [0, 1] as they are, or as integers rounded half up (8 bit leave a GPU as
    such).
    """
    if not target.is_floating_point():
        band = band * torch.iinfo(target.dtype).max + 0.5
    if target.dtype == torch.uint8:
        band = band.to(torch.uint8)
    target.copy_(band.cpu().to(target.dtype))
