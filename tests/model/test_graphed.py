"""`Graphed`: a frozen copy of a model, replayed from CUDA graphs.

A machine without a GPU has no graphs, so a small emulation takes their place: recording keeps every
operator with its tensors, as a graph keeps kernels with their addresses, and replaying runs them
anew into the same memory. It is as strict as CUDA: an operator that must wait for the GPU cannot be
recorded. What runs on real ones is in tests/contract/test_on_device.py.
"""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from diinn_fast import DIINN, Graphed, graphed, guard
from tests.helpers.small_models import small_model

WAITS = ("_local_scalar_dense", "nonzero", "item", "equal")


class Operators(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.overloadpacket.__name__ in WAITS:
            raise RuntimeError("operation not permitted when stream is capturing")
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, out))
        return out


class EmulatedGraph:
    replays = 0

    def __init__(self) -> None:
        self.operators = Operators()

    def replay(self) -> None:
        EmulatedGraph.replays += 1
        for func, args, kwargs, out in self.operators.calls:
            anew = func(*args, **kwargs)
            given = {
                v.untyped_storage().data_ptr()
                for v in tree_flatten((args, kwargs))[0]
                if isinstance(v, Tensor)
            }
            for old, new in zip(tree_flatten(out)[0], tree_flatten(anew)[0], strict=True):
                if isinstance(old, Tensor) and old.untyped_storage().data_ptr() not in given:
                    old.copy_(new)


class Stream:
    def wait_stream(self, other: Stream) -> None: ...
    def wait_event(self, event: Event) -> None: ...


class Event:
    def record(self, stream: Stream) -> None: ...
    def synchronize(self) -> None: ...


@contextlib.contextmanager
def recording(graph: EmulatedGraph, *, stream: Stream, capture_error_mode: str) -> Any:
    with graph.operators:
        yield


@pytest.fixture(autouse=True)
def emulation(monkeypatch: pytest.MonkeyPatch) -> None:
    # A real recording is no mode that looks at operators, so it does not make layers be called.
    monkeypatch.setattr(guard, "_get_current_dispatch_mode_stack", list)
    for name, value in {
        "Stream": Stream,
        "Event": Event,
        "CUDAGraph": EmulatedGraph,
        "graph": recording,
        "current_stream": Stream,
        "stream": lambda stream: contextlib.nullcontext(),
        "device_of": lambda x: contextlib.nullcontext(),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(graphed, "can_record", lambda x: True)
    monkeypatch.setattr(EmulatedGraph, "replays", 0)


def image(*shape: int) -> Tensor:
    return torch.rand(*(shape or (1, 3, 6, 5))) * 2 - 1


@pytest.mark.parametrize("mode", [1, 2, 3, 4])
@pytest.mark.parametrize("backend", ["eager", "auto"])
def test_replays_what_the_model_gives(mode: int, backend: str) -> None:
    model = small_model(mode=mode)
    fast = Graphed(model)
    for _ in range(3):
        x = image(2, 3, 7, 5)
        with torch.no_grad():
            assert torch.equal(
                fast(x, (16, 11), backend=backend), model(x, (16, 11), backend=backend)
            )
    assert EmulatedGraph.replays == 3


def test_records_a_shape_once_and_forgets_the_one_used_least_recently(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = []
    original = graphed.record
    monkeypatch.setattr(graphed, "record", lambda call: made.append(1) or original(call))
    fast = Graphed(small_model(), most=2)
    first = image(1, 3, 4, 4)
    second = image(1, 3, 4, 5)
    third = image(1, 3, 4, 6)
    for x in (first, second, first, third, first):
        fast(x, scale=2)
    assert len(made) == 3
    fast(second, scale=2)
    assert len(made) == 4
    fast(second, scale=3)
    fast(second.double(), scale=3)
    assert len(made) == 6


def test_large_batches_are_not_recorded() -> None:
    fast = Graphed(small_model(), largest=59)
    x = image(2, 3, 6, 5)
    fast(x, (9, 9))
    assert EmulatedGraph.replays == 0
    fast(x[:1], (9, 9))
    assert EmulatedGraph.replays == 1


def test_results_are_the_callers_own() -> None:
    fast = Graphed(small_model())
    x = image()
    first = fast(x, (9, 9))
    kept = first.clone()
    second = fast(image(), (9, 9))
    assert torch.equal(first, kept) and not torch.equal(first, second)
    first.fill_(float("nan"))
    assert torch.equal(fast(x, (9, 9)), kept)


def test_holds_a_copy_of_the_model_and_leaves_the_model_alone() -> None:
    model = small_model()
    x = image()
    before = {name: (v.dtype, v.stride(), v.clone()) for name, v in model.state_dict().items()}
    fast = Graphed(model, dtype=torch.bfloat16)
    want = fast(x, (9, 9))
    for name, v in model.state_dict().items():
        assert (v.dtype, v.stride()) == before[name][:2] and torch.equal(v, before[name][2])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.data.fill_(float("nan"))
    assert torch.equal(fast(x, (9, 9)), want)


@pytest.mark.parametrize(("dtype", "limit"), [(torch.bfloat16, 0.03), (torch.float64, 1e-5)])
def test_dtype_is_that_of_the_products_and_the_output_has_the_inputs(
    dtype: torch.dtype, limit: float
) -> None:
    model = small_model()
    x = image()
    out = Graphed(model, dtype=dtype)(x, (9, 9))
    with torch.no_grad():
        exact = model.double()(x.double(), (9, 9))
    assert out.dtype == torch.float32
    assert (out - exact).norm() <= limit * exact.norm()


def test_what_surrounds_the_call_does_not_matter() -> None:
    fast = Graphed(small_model())
    x = image()
    want = fast(x, (9, 9))
    for surroundings in (
        torch.autocast("cpu", torch.bfloat16),
        torch.inference_mode(),
        torch.enable_grad(),
    ):
        other = Graphed(small_model())
        with surroundings:
            got = other(x, (9, 9))
        assert (
            torch.equal(got, want) and torch.equal(other(x, (9, 9)), want) and not got.requires_grad
        )


def test_compiled_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile is asked for, once per Graphed, for the copy alone."""
    asked: list[tuple[nn.Module, dict[str, Any]]] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: asked.append((self, options)))
    model = small_model()
    fast = Graphed(model, compile=True)
    assert [m for m, _ in asked] == [fast.encoder] and fast.encoder is not model.encoder
    assert asked[0][1] == {"mode": "max-autotune-no-cudagraphs", "dynamic": False}


class Waits(nn.Module):
    """An encoder that looks at a value, for which the CPU must wait for the GPU."""

    out_channels = 64

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(64, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1, keepdim=True) * self.gain * x.mean().item()


def test_an_encoder_that_waits_for_the_gpu_is_refused_in_one_sentence() -> None:
    fast = Graphed(DIINN(encoder=Waits()))
    for _ in range(2):  # and nothing half-made is kept
        with pytest.raises(RuntimeError, match="cannot be recorded in a CUDA graph"):
            fast(image(), (9, 9))


def test_refusals() -> None:
    model = small_model()
    with pytest.raises(ValueError, match="at least 1 graph"):
        Graphed(model, most=0)
    with pytest.raises(ValueError, match="dtype must be"):
        Graphed(model, dtype=torch.int8)
    with pytest.raises(ValueError, match="either size="):
        Graphed(model)(image())
    with pytest.raises(ValueError, match="the image is on meta, the model on cpu"):
        Graphed(model)(image().to("meta"), scale=2)
    assert not Graphed(model)._recorded
