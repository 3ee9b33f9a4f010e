"""What only a device has: graphs, streams, several devices, outputs of billions of elements.

All else is the contract of the targets whose names begin with ``device``. The whole of it:

    python -m pytest tests/contract -k device
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from diinn_fast import DIINN, Graphed
from diinn_fast.encoders import EDSR
from diinn_fast.geometry import Window
from diinn_fast.graphed import record
from tests.contract.targets import Target, every
from tests.helpers.measure import rms
from tests.helpers.problems import away_from_kinks, decoder_of, make_decoder, operands

DEVICE = "cuda"
every_backend = every(lambda target: target.device == DEVICE and target.dtype == torch.float16)
"""Once per backend, in a dtype that all of them take."""
every_trained = every(
    lambda target: target.device == DEVICE and target.dtype == torch.float16 and target.trains
)


def random_features(target: Target, *shape: int) -> Tensor:
    return torch.randn(1, target.channels, *shape).to(DEVICE, target.dtype)


@every_backend
def test_a_captured_decode_is_replayed_on_other_features(target: Target) -> None:
    """In a CUDA graph, with the bits of a plain call."""
    decoder = decoder_of(target.network(3))
    static = random_features(target, 24, 24)

    def decode() -> Tensor:
        with torch.no_grad():
            result: Tensor = decoder(static, (96, 96), backend=target.backend)
            return result

    out, replay = record(decode)
    for _ in range(2):
        static.normal_()
        replay()
        assert torch.equal(out, decode())


@pytest.mark.parametrize("compiled", [False, True])
@every_backend
def test_graphed_gives_what_the_model_does(target: Target, compiled: bool) -> None:
    """For other images, shapes and streams, under autocast."""
    model = DIINN(encoder=EDSR(blocks=2)).to(DEVICE)
    fast = Graphed(model, compile=compiled)
    for shape in ((1, 3, 24, 24), (2, 3, 17, 30), (1, 3, 24, 24)):
        x = torch.rand(shape, device=DEVICE) * 2 - 1
        with torch.no_grad(), torch.autocast(DEVICE, torch.float16):
            want = model(x, scale=3.5, backend=target.backend)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        first = fast(x, scale=3.5, backend=target.backend)
        with torch.cuda.stream(side):
            second = fast(x, scale=3.5, backend=target.backend)
        torch.cuda.synchronize()
        assert first.dtype == torch.float32 and torch.equal(first, second)
        assert rms(first - want) <= 1e-2 * rms(want)


@every_backend
def test_work_goes_to_the_current_stream(target: Target) -> None:
    """Here behind a copy that comes late."""
    decoder = decoder_of(target.network(3))
    other = random_features(target, 24, 24)
    features = torch.zeros_like(other)
    side = torch.cuda.Stream()
    with torch.no_grad():
        want = decoder(other, (96, 96), backend=target.backend)
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            torch.cuda._sleep(100_000_000)
            features.copy_(other)
            got = decoder(features, (96, 96), backend=target.backend)
        side.synchronize()
    assert torch.equal(got, want)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@every_backend
def test_tensors_decide_where_the_work_is_done(target: Target) -> None:
    """Not the current device."""
    network = target.network(3)
    features = random_features(target, 5, 4)
    with torch.no_grad():
        want = decoder_of(network)(features, (11, 13), backend=target.backend)
        elsewhere = decoder_of(replace(network, device="cuda:1"))
        got = elsewhere(features.to("cuda:1"), (11, 13), backend=target.backend)
    assert got.device.index == 1
    assert rms(got.to(want.device) - want) <= 1e-2 * rms(want)


@every_backend
def test_an_output_of_more_than_2_to_the_31_elements(target: Target) -> None:
    """Written for real: each corner is what its window gives."""
    side = 27_000
    if torch.cuda.mem_get_info()[0] < 12 << 30:
        pytest.skip("needs 12 GiB of GPU memory")
    image = replace(
        operands("content", 3, width=target.width, dtype=target.dtype, device=DEVICE, batch=1),
        source=torch.randn(1, 30, 30, 4 * target.width).to(DEVICE, target.dtype),
        lr=(30, 30),
        origin=(0, 0),
        size=(side, side),
    )

    def decode(*window: int) -> Tensor:
        return replace(image, window=Window(*window)).decode(target.backend)

    whole = decode(0, side, 0, side)
    assert whole.numel() > 1 << 31
    for y in (0, side - 9):
        for x in (0, side - 7):
            assert torch.equal(decode(y, y + 9, x, x + 7), whole[:, :, y : y + 9, x : x + 7])


@every_trained
def test_data_parallel_gradients_are_those_of_one_device_on_the_whole_batch(
    target: Target, tmp_path: Path
) -> None:
    world = max(1, torch.cuda.device_count())
    decoder = away_from_kinks(make_decoder(3, width=target.width, channels=target.channels))
    features = torch.randn(2 * world, target.channels, 4, 3)
    wanted = torch.randn(2 * world, 3, 9, 10)
    torch.save((decoder, features, wanted), tmp_path / "job.pt")
    job = (world, target.backend, str(tmp_path))
    torch.multiprocessing.spawn(_train, job, nprocs=world)
    got = torch.load(tmp_path / "grads.pt", weights_only=True)
    decoder.to(DEVICE)
    with torch.autocast(DEVICE, torch.float16):
        out = decoder(features.to(DEVICE), (9, 10), backend=target.backend)
    loss = (out.float() - wanted.to(DEVICE)).square().mean()
    for a, b in zip(got, torch.autograd.grad(loss, list(decoder.parameters())), strict=True):
        assert rms(a - b.cpu()) <= 1e-2 * rms(b)


def _train(rank: int, world: int, backend: str, folder: str) -> None:
    """One step of one rank on its part of a batch; rank 0 leaves the gradients."""
    device = torch.device(DEVICE, rank)
    torch.cuda.set_device(device)
    torch.distributed.init_process_group(
        "nccl", init_method=f"file://{folder}/meet", rank=rank, world_size=world
    )
    job = torch.load(f"{folder}/job.pt", weights_only=False)
    decoder, features, wanted = (v.to(device) for v in job)
    model = torch.nn.parallel.DistributedDataParallel(decoder, device_ids=[rank])
    share = slice(rank * len(features) // world, (rank + 1) * len(features) // world)
    with torch.autocast(DEVICE, torch.float16):
        out = model(features[share], wanted.shape[-2:], backend=backend)
    (out.float() - wanted[share]).square().mean().backward()
    if rank == 0:
        torch.save([p.grad.cpu() for p in decoder.parameters()], f"{folder}/grads.pt")
    torch.distributed.destroy_process_group()
