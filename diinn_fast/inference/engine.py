"""A model made ready on a device: LR pixels to features, features to the pixels of a window."""

from __future__ import annotations

import copy
import logging
import os
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self, TypedDict

import torch
from torch import Tensor

from diinn_fast import backends
from diinn_fast.backends import int8
from diinn_fast.encoders import Encoder, cost_of, use_fast_weights
from diinn_fast.errors import UpscaleError
from diinn_fast.formats.sample_range import FULL, SampleRange
from diinn_fast.fused import Fused
from diinn_fast.geometry import MAX_LENGTH
from diinn_fast.inference.devices import (
    INT8,
    auto_text,
    dtype_of,
    is_left,
    pick_backend,
    pick_device,
    pick_precision,
    refuses_int8,
)
from diinn_fast.inference.reduced import needs_network, reduced_size
from diinn_fast.inference.transfer import upload
from diinn_fast.loading import load_weights, portable_name
from diinn_fast.model import DIINN
from diinn_fast.plain import Plain

log = logging.getLogger("diinn_fast")

REDUCTION = "bicubic"
"""Stands for a backend where the network has nothing to do."""


class EngineOptions(TypedDict, total=False):
    """How to compute; arguments of `Engine`.

    Attributes:
        device: "cpu", "cuda", "cuda:1", "mps"; default: the given model's, else CUDA if there is
            any.
        precision: "fp32"; "bf16" or "fp16" (autocast of encoder and decoder); "int8" (the
            decoder's products, on the CPU, or on CUDA by the backend "triton"); default, as "auto":
            fp16 on CUDA; on a CPU that has instructions for it int8 for outputs of 8 bits per
            channel, unless a backend is asked for; else fp32.
        backend: see ``diinn_fast.use_backend``; default: the one in force when this is made.
        self_ensemble: mean over the 8 flips and transposes: slightly better, 8 times the work; in
            memory only.
    """

    device: str | torch.device | None
    precision: str | None
    backend: str | None
    self_ensemble: bool


@dataclass
class _Used:
    """What decodes, as the last `Engine.check_sizes` has found."""

    backend: str = ""
    precision: str = ""


class Engine:
    """A model, where and in which precision it computes.

    Args:
        model: a DIINN, a bundled model's name, a model folder or a checkpoint file; default: the
            bundled model.

    The others are those of `EngineOptions`. A precision that is left to choose is that of outputs
    of more than 8 bits: `for_bits` gives the engine of others.

    Attributes:
        precision: "fp32", "bf16", "fp16" or "int8".
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
        self._model_name = None if isinstance(model, DIINN) else portable_name(model)
        self._options: EngineOptions = {
            "device": device,
            "precision": precision,
            "backend": backend,
            "self_ensemble": self_ensemble,
        }
        # A model that is on a device stays there unless another one is asked for.
        given = (
            next(model.parameters()).device
            if isinstance(model, DIINN) and device is None
            else device
        )
        self.device = pick_device(given)
        self.backend = pick_backend(backend, precision, self.device)
        self.precision = pick_precision(precision, self.device)
        self.dtype = dtype_of(self.precision, self.device)
        self.self_ensemble = self_ensemble
        self._used = _Used()
        self._prepared: tuple[weakref.ref[Tensor], Fused | Plain] | None = None
        if not isinstance(model, DIINN):
            self.model = load_weights(model).to(self.device)
        elif model.training or any(
            p.device != self.device or p.dtype != torch.float32 for p in model.parameters()
        ):
            # A copy: the caller's model stays as it is.
            self.model = copy.deepcopy(model).to(self.device, torch.float32).eval()
        else:
            self.model = model
        if self.model is not model and self.device.type == "cuda" and self.dtype != torch.float32:
            use_fast_weights(self.model.encoder)
        left = is_left(precision) and log.isEnabledFor(logging.INFO)
        name = auto_text(self.backend, self.device) if left else self.precision
        log.info("mode %d model on %s in %s", self.model.decoder.mode, self.device, name)

    @property
    def used_backend(self) -> str:
        """Name of the backend that decodes, after `check_sizes`."""
        return self._used.backend

    @property
    def used_precision(self) -> str:
        """The precision in which it does; empty where the network has nothing to do."""
        return self._used.precision

    def for_bits(self, bits: int) -> Self:
        """The engine for outputs of so many bits per channel: where the precision is left to
        choose, another one with the same weights and with its precision named; else itself.
        """
        if not is_left(self._options["precision"]):
            return self
        name = INT8 if bits == 8 and self._takes_int8() else self.precision
        # Not copied: that would be by `__reduce__`, which loads the weights anew.
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        twin.precision = name
        twin.backend = INT8 if name == INT8 else self.backend
        twin._options = {**self._options, "precision": name}
        twin._prepared = None
        # Whoever asks this one is told of the last.
        twin._used = self._used = _Used()
        return twin

    def _takes_int8(self) -> bool:
        """Whether outputs of 8 bits per channel are made in int8."""
        if refuses_int8(self.backend, self.device):
            return False
        # Of these nothing would be in integers.
        decoder = self.model.decoder
        edited = decoder.init_q or bool(decoder.edit())
        return not edited and int8.takes_layers(decoder.width, len(decoder.K))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled by the model's name, from which it is loaded where it arrives."""
        if self._model_name is None:
            raise UpscaleError(
                "a model given as an object cannot be sent to another process: save it and give "
                "its file or folder"
            )
        return _made, (type(self), self._model_name, self._options)

    def check_sizes(self, lr: Sequence[int], hr: tuple[int, int]) -> None:
        """Refuse sizes that cannot be done at all, and choose the backend."""
        height, width = lr
        if not (1 <= height <= MAX_LENGTH and 1 <= width <= MAX_LENGTH):
            raise UpscaleError(f"a picture of {width}x{height} pixels cannot be upscaled")
        if not needs_network((height, width), hr):
            self._used.backend = REDUCTION
            self._used.precision = ""
            return
        # A picture that only gets smaller never reaches the network, whatever its mode.
        decoder = self.model.decoder
        if min(hr) < decoder.formulation.least_side:
            raise UpscaleError(
                f"a mode {decoder.mode} model needs an output of at least 2x2 pixels, "
                f"not {hr[1]}x{hr[0]}"
            )
        self._used.backend = self._choose_backend(reduced_size((height, width), hr), hr)
        name = self.used_backend
        integers = name in backends.NAMES and backends.load(name).INTEGERS
        self._used.precision = INT8 if integers else self.precision
        done = self.used_precision, name
        log.info("%dx%d to %dx%d in %s by backend %s", width, height, hr[1], hr[0], *done)

    @torch.inference_mode()
    def encode(self, rgb: Tensor, work_bytes: int | None = None) -> Tensor:
        """Features ``[1, C, h, w]`` of an LR picture ``[3, h, w]`` in [0, 1]; ``work_bytes`` as of
        `encoders.Cost`.
        """
        # One memory layout for all inputs: convolutions round differently in another.
        x = upload(rgb, self.device).to(torch.float32).contiguous()[None]
        encoder = self.model.encoder
        bounded = work_bytes is not None and cost_of(encoder).shares
        limit = {"work_bytes": work_bytes} if bounded else {}
        x = (x - 0.5) / 0.5
        with self._arithmetic():
            pairs = self._in_pairs()
            if pairs is not None and (found := pairs.in_pairs(x)) is not None:
                return found
            result: Tensor = encoder(x, **limit)
            return result

    def rounding(self, backend: str) -> list[str]:
        """What else than dtype, device and ``backend`` decides about the last bits, on one CPU and
        another: part of the identity of what is computed in pieces.
        """
        if backend != INT8:
            return []
        return ["digits"] if self._in_pairs() is None else ["digits", "pairs"]

    def _in_pairs(self) -> Encoder | None:
        """The encoder if it encodes by `Encoder.in_pairs`: for int8, whose own rounding is a
        thousand times as large.
        """
        encoder = self.model.encoder
        if self.precision != INT8 or self.device.type != "cpu" or not isinstance(encoder, Encoder):
            return None
        return encoder if encoder.has_pairs() else None

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
        strip = self.start_decode(features, hr, window, tile)
        self.check_finite(torch.isfinite(strip).all())
        return strip

    @torch.inference_mode()
    def start_decode(
        self,
        features: Tensor,
        hr: tuple[int, int],
        window: Sequence[int],
        tile: tuple[tuple[int, int], tuple[int, int]] | None = None,
    ) -> Tensor:
        """`decode` that does not wait for a device, and so does not look at the numbers."""
        with self._arithmetic():
            path = self._path(features)
            found = self.model.decoder(features, hr, window=window, tile=tile, prepared=path)
        strip: Tensor = found[0].float()
        return strip

    def check_finite(self, finite: Tensor) -> None:
        """FloatingPointError unless it is true."""
        if not finite:
            raise FloatingPointError(self._not_finite())

    def _path(self, features: Tensor) -> Fused | Plain:
        """The decoder made ready for these features: their windows share the packed weights."""
        kept = self._prepared
        if kept is not None and kept[0]() is features:
            return kept[1]
        path = self.model.decoder.prepare(features, backend=self.backend)
        self._prepared = weakref.ref(features), path
        return path

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
        like = torch.empty(0, dtype=self.dtype, device=self.device)
        return self.model.decoder.backend_for(lr, hr, like, self.backend)

    def _not_finite(self) -> str:
        found = f"the network gave NaN or infinity in {self.precision}"
        if self.dtype == torch.float32:
            return f"{found}: its weights do not suit this picture, try other weights"
        return f'{found}: use --precision fp32 (precision="fp32")'


def _made(kind: type[Engine], model: str, options: EngineOptions) -> Engine:
    return kind(model, **options)


def to_unit(strip: Tensor) -> Tensor:
    """The network's raw output in [0, 1]."""
    return (strip * 0.5 + 0.5).clamp_(0, 1)


def store(target: Tensor, strip: Tensor, samples: SampleRange = FULL) -> None:
    """Write what is in [0, 1] as samples of a range: as they are, or as integers rounded half up
    (8 bit leave a GPU as such).
    """
    target.copy_(rounded(strip, target.dtype, samples).cpu().to(target.dtype))


def rounded(strip: Tensor, dtype: torch.dtype, samples: SampleRange = FULL) -> Tensor:
    """What `store` copies: still on its device, and in 8 bit if the target is."""
    strip = samples.from_unit(strip)
    if not dtype.is_floating_point:
        strip = strip * torch.iinfo(dtype).max + 0.5
    return strip.to(torch.uint8) if dtype == torch.uint8 else strip
