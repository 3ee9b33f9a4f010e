"""A model frozen for inference, its work on a GPU recorded in CUDA graphs: for images so small that
launching kernels takes longer than running them.
"""

from __future__ import annotations

import copy
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from diinn_fast import backends
from diinn_fast.encoders import use_fast_weights
from diinn_fast.geometry import hr_size
from diinn_fast.model import DIINN

T = TypeVar("T")

LARGEST = 1 << 16
"""Most LR pixels of a batch that are recorded. RDN launches some 600 kernels, about 3 ms of a CPU;
for more pixels it computes longer than that (prediction: 0.1 us per LR pixel), and a graph would
only hold memory.
"""
WARM_UP = 2
"""Runs before recording: kernels are compiled and checked, and algorithms chosen."""

_one_at_a_time = threading.Lock()  # PyTorch records one graph of a process at a time


class Graphed:
    """A DIINN for inference, called as the model is: ``graphed(x, (H, W))`` or
    ``graphed(x, scale=3.5)``.

    It holds a copy of the model as it is now, the encoder in ``dtype`` and channels_last; changes
    of the model do not reach it. On a CUDA device the first call for a shape and size records its
    kernels, and further ones replay them with one launch; settings in force at the first call
    (backend, TF32) stay. Elsewhere, and above ``largest`` LR pixels, the copy is run as it is.
    Results have x's dtype and are the caller's. Calls from several threads and streams follow each
    other.

    Args:
        model: the model, on its device.
        dtype: of the encoder and of the decoder's products; default float16 on CUDA, else float32.
        compile: the encoder through ``torch.compile``, which fuses its small operations, for each
            input shape.
        most: graphs kept, each with the memory of one run; the least recently used makes room.
        largest: most LR pixels (of a batch) that are recorded.

    Raises RuntimeError if a custom encoder cannot be recorded, for example because it waits for the
    GPU.
    """

    def __init__(
        self,
        model: DIINN,
        *,
        dtype: torch.dtype | None = None,
        compile: bool = False,
        most: int = 8,
        largest: int = LARGEST,
    ) -> None:
        if most < 1:
            raise ValueError(f"most must be at least 1 graph, got {most}")
        self.device = next(model.parameters()).device
        self.dtype = dtype or (torch.float16 if self.device.type == "cuda" else torch.float32)
        if self.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            raise ValueError(
                f"dtype must be float16, bfloat16, float32 or float64, got {self.dtype}"
            )
        # A copy, because a recording keeps the addresses of weights, and training would move them.
        frozen = copy.deepcopy(model).eval().requires_grad_(False)
        # Of 16 bits; the decoder's positions stay float32, as under autocast.
        self.half = self.dtype.itemsize == 2
        self.decoder = frozen.decoder.to(torch.float32 if self.half else self.dtype)
        self.encoder = use_fast_weights(frozen.encoder.to(self.dtype))
        if compile:
            self.encoder.compile(mode="max-autotune-no-cudagraphs", dynamic=False)
        self.most = most
        self.largest = largest
        self._recorded: OrderedDict[tuple[Any, ...], _Recording] = OrderedDict()
        self._lock = threading.Lock()

    @torch.inference_mode(False)  # whose tensors could not be written again outside of it
    @torch.no_grad()
    def __call__(
        self,
        x: Tensor,
        size: Sequence[int] | None = None,
        *,
        scale: float | Sequence[float] | None = None,
        backend: str | None = None,
    ) -> Tensor:
        """SR image ``[B, 3, H, W]`` of an LR one ``[B, 3, h, w]``, both normalised, as of
        `DIINN.forward`.
        """
        if x.device != self.device:
            raise ValueError(
                f"the image is on {x.device}, the model on {self.device}: move one of them"
            )
        hr = hr_size(x.shape[-2:], size, scale)
        name = backends.requested() if backend is None else backend
        # Large images keep the GPU busy by themselves: a recording would only hold their memory.
        if not can_record(x) or x[:, 0].numel() > self.largest:
            return self._run(x, hr, name)
        key = x.shape, x.dtype, hr, name
        # A recording has one input and one output buffer: one thread at a time.
        with self._lock, torch.cuda.device_of(x):
            recording = self._recorded.get(key)
            if recording is None:
                # The one that was not used for longest goes first.
                while len(self._recorded) >= self.most:
                    self._recorded.popitem(last=False)[1].finish()
                recording = self._recorded[key] = _Recording(lambda v: self._run(v, hr, name), x)
            self._recorded.move_to_end(key)
            return recording(x)

    def _run(self, x: Tensor, size: tuple[int, int], backend: str) -> Tensor:
        kind = self.device.type
        with torch.autocast(kind, enabled=False):
            features = self.encoder(x.to(self.dtype))
        # The cache of casts must not carry tensors from outside into a graph, nor out of it.
        with torch.autocast(
            kind, dtype=self.dtype if self.half else None, enabled=self.half, cache_enabled=False
        ):
            result: Tensor = self.decoder(features, size, backend=backend).to(x.dtype)
            return result


def can_record(x: Tensor) -> bool:
    """Whether calls on this input can be recorded: CUDA tensors alone."""
    return x.is_cuda


class _Recording:
    """A function of one tensor in a CUDA graph."""

    def __init__(self, function: Callable[[Tensor], Tensor], x: Tensor) -> None:
        self.input = x.clone(memory_format=torch.contiguous_format)
        try:
            self.output, self.replay = record(lambda: function(self.input))
        except RuntimeError as error:
            raise RuntimeError(
                f"this model cannot be recorded in a CUDA graph, call the model itself: {error}"
            ) from error
        self.done = torch.cuda.Event()

    def __call__(self, x: Tensor) -> Tensor:
        """On the current stream, after the previous call, whatever stream that was on."""
        stream = torch.cuda.current_stream()
        stream.wait_event(self.done)
        self.input.copy_(x)
        self.replay()
        out = self.output.clone()
        self.done.record(stream)
        return out

    def finish(self) -> None:
        """Wait for the last call: the graph and its memory can go then."""
        self.done.synchronize()


def record(call: Callable[[], T]) -> tuple[T, Callable[[], None]]:
    """A call's work on the current CUDA device as a graph: its static output, and what computes it
    anew.
    """
    # PyTorch's own stream for recording is of one device
    side = torch.cuda.Stream()
    graph = torch.cuda.CUDAGraph()
    with _one_at_a_time:
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                call()
        # Other threads may allocate memory meanwhile.
        with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
            out = call()
        torch.cuda.current_stream().wait_stream(side)
    return out, graph.replay
