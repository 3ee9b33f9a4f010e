"""What a render does with a CUDA device, of which the tests have none: its streams, its pinned
memory and the bound on its memory stand in.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from diinn_fast.inference import Upscaler, memory, transfer
from diinn_fast.inference.rendering import loop
from tests.helpers.small_models import picture, small_model

CUDA = torch.device("cuda", 0)


class OnDevice(Tensor):
    """Numbers that say they are on a device."""

    events: list[str]

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return CUDA

    def record_stream(self, stream: Any) -> None:
        self.events.append("the device's memory is kept for the copy")


class Stream:
    """A stream that says what is asked of it; what is copied arrives when it is waited for."""

    def __init__(self, events: list[str]) -> None:
        self.events = events

    def wait_stream(self, other: str) -> None:
        self.events.append(f"the copy waits for {other}")

    def record_event(self) -> Any:
        self.events.append("copied")
        return SimpleNamespace(synchronize=lambda: self.events.append("arrived"))


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is asked of the device, in order."""
    found: list[str] = []

    @contextmanager
    def stream(side: Stream) -> Iterator[None]:
        found.append("on its own stream")
        yield

    def pinned_like(values: Tensor) -> Tensor:
        found.append("into pinned memory")
        return torch.empty(values.shape, dtype=values.dtype)

    monkeypatch.setattr(transfer, "_side_stream", lambda device: Stream(found))
    monkeypatch.setattr(transfer, "_pinned_like", pinned_like)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "the computation")
    monkeypatch.setattr(torch.cuda, "stream", stream)
    return found


def test_a_download_is_a_copy_on_its_own_stream_into_pinned_memory(events: list[str]) -> None:
    values = torch.arange(6.0).as_subclass(OnDevice)
    values.events = events
    download = transfer.Download(values)
    assert events == [
        "the copy waits for the computation",
        "on its own stream",
        "into pinned memory",
        "copied",
        "the device's memory is kept for the copy",
    ]
    assert torch.equal(download.wait(), torch.arange(6.0))
    assert events[-1] == "arrived"


def test_an_upload_is_from_pinned_memory_and_waits_for_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[Any] = []
    values = torch.zeros(3)
    monkeypatch.setattr(Tensor, "pin_memory", lambda self: calls.append("pinned") or self)
    monkeypatch.setattr(Tensor, "to", lambda self, *a, **k: calls.append((a, k)) or self)
    transfer.upload(values, CUDA)
    assert calls == ["pinned", ((CUDA,), {"non_blocking": True})]


def test_nothing_is_late_on_a_cpu_and_one_step_on_a_device() -> None:
    for device, late in ((torch.device("cpu"), 0), (CUDA, transfer.LATE)):
        done: list[int] = []
        pipeline = transfer.Late(device)
        for step in range(4):
            pipeline.do(partial(done.append, step))
            assert done == list(range(step + 1 - late if step >= late else 0))
        pipeline.finish()
        assert done == [0, 1, 2, 3]


def test_a_device_decodes_a_strip_before_the_one_before_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the pixels are the same."""
    engine = Upscaler(small_model(), device="cpu")
    whole = engine(picture(), scale=3)
    events: list[str] = []
    start = loop.start_samples

    def logged(*arguments: Any) -> Any:
        events.append("decoded")
        finish = start(*arguments)
        return lambda: (events.append("stored"), finish())

    monkeypatch.setattr(loop, "start_samples", logged)
    monkeypatch.setattr(loop, "Late", lambda device: transfer.Late(CUDA))
    monkeypatch.setattr(loop, "split", _strips_of(5))
    out = engine.render(picture(), tmp_path / "out.npy", scale=3)
    np.testing.assert_array_equal(np.load(out), whole)
    assert events[:4] == ["decoded", "decoded", "stored", "decoded"]
    assert events[-1] == "stored" and events.count("stored") == events.count("decoded")


def _strips_of(rows: int) -> Any:
    real = loop.split
    return lambda window, strip, columns: real(window, rows, columns)


def test_what_a_device_finds_not_finite_is_said_when_it_is_stored() -> None:
    engine = Upscaler(small_model(), device="cpu")
    with pytest.raises(FloatingPointError, match="NaN or infinity in fp32"):
        engine.check_finite(torch.tensor(False))
    engine.check_finite(torch.tensor(True))


class Allocator:
    """The share of a device of 8 GiB that PyTorch may take."""

    def __init__(self, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
        self.share = share
        monkeypatch.setattr(
            torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=8 << 30)
        )
        monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda _: self.share)
        monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", self.set)

    def set(self, share: float, device: torch.device) -> None:
        assert device == CUDA
        self.share = share


@pytest.mark.parametrize(("before", "within"), [(1.0, 0.25), (0.125, 0.125)])
def test_a_bound_on_memory_is_the_allocators_while_it_renders(
    before: float, within: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A smaller one that is in force stays so."""
    allocator = Allocator(before, monkeypatch)
    with pytest.raises(KeyError), memory.device_memory_within(2 << 30, CUDA):
        assert allocator.share == within
        raise KeyError
    assert allocator.share == before


def test_a_render_keeps_its_devices_memory_within_the_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the first tile to the last; without a bound, and on a CPU, nothing is asked."""
    bounds: list[Any] = []

    @contextmanager
    def within(bound: int | None, device: torch.device) -> Iterator[None]:
        bounds.append((bound, device.type))
        yield
        bounds.append("end")

    monkeypatch.setattr(loop, "device_memory_within", within)
    engine = Upscaler(small_model(), device="cpu")
    engine.render(picture(), tmp_path / "out.npy", scale=2, max_memory="3GiB")
    assert bounds == [(3 << 30, "cpu"), "end"]
    monkeypatch.undo()
    monkeypatch.delattr(torch.cuda, "set_per_process_memory_fraction")
    for bound, device in ((None, CUDA), (1 << 30, torch.device("cpu"))):
        with memory.device_memory_within(bound, device):
            pass
