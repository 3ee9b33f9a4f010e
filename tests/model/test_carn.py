"""CARN: the published network, exact in tiles, and usable by name wherever an encoder is named."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.bounded import fresh, imported_bytes
from bench.cases import Case
from diinn_fast import DIINN
from diinn_fast.encoders import make_encoder
from diinn_fast.encoders.carn import CARN
from diinn_fast.inference import Upscaler
from diinn_fast.inference.memory import MIB
from diinn_fast.loading import load_model
from tests.helpers.small_models import picture


def literal(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """CARN as its paper draws it, in one dtype."""

    def conv(name: str, value: Tensor) -> Tensor:
        weight = state[f"{name}.weight"]
        return F.conv2d(value, weight, state[f"{name}.bias"], padding=weight.shape[-1] // 2)

    def residual(name: str, value: Tensor) -> Tensor:
        inner = torch.relu(conv(f"{name}.body.0", value))
        return torch.relu(conv(f"{name}.body.2", inner) + value)

    def cascade(name: str, value: Tensor, block: Any) -> Tensor:
        gathered = value
        for n in (1, 2, 3):
            gathered = torch.cat([gathered, block(f"{name}b{n}", value)], dim=1)
            value = torch.relu(conv(f"{name}c{n}.body.0", gathered))
        return value

    def local(name: str, value: Tensor) -> Tensor:
        return cascade(f"{name}.", value, residual)

    return cascade("", conv("entry", x), local)


@pytest.fixture
def small() -> CARN:
    torch.manual_seed(0)
    carn = CARN(channels=16)
    with torch.no_grad():
        for parameter in carn.parameters():
            parameter.mul_(1.5)  # so that every layer matters in the output
    return carn


def test_the_published_parameters() -> None:
    state = CARN().state_dict()
    assert sum(value.numel() for value in state.values()) == 814_720
    assert state["entry.weight"].shape == (64, 3, 3, 3)
    assert state["b3.b1.body.2.weight"].shape == (64, 64, 3, 3)
    assert state["b2.c3.body.0.weight"].shape == (64, 4 * 64, 1, 1)
    assert state["c1.body.0.weight"].shape == (64, 2 * 64, 1, 1)


@pytest.mark.parametrize("grad", [False, True])
def test_equals_the_literal_formulation(small: CARN, grad: bool) -> None:
    x = torch.rand(2, 3, 11, 9) * 2 - 1
    state = {key: value.double() for key, value in small.state_dict().items()}
    exact = literal(state, x.double())
    with torch.set_grad_enabled(grad):
        ours = small(x)
        plain = small.plain(x)
        twice = small.double()(x.double())
    for found in (ours, plain):
        assert float((found - exact).detach().norm()) <= 3e-7 * float(exact.detach().norm())
    torch.testing.assert_close(twice, exact, rtol=1e-12, atol=1e-12)


def test_a_pixel_reaches_exactly_the_receptive_radius(small: CARN) -> None:
    carn = small.double()
    radius = carn.receptive_radius
    assert radius == CARN().receptive_radius == 19
    x = torch.rand(1, 3, 1, 2 * radius + 5, dtype=torch.float64)
    poked = x.clone()
    poked[..., radius + 2] += 10
    with torch.inference_mode():
        for parameter in carn.parameters():
            parameter.abs_()  # no ReLU is idle
        reached = (carn(poked) != carn(x)).any(dim=1)[0, 0].nonzero()
    assert (int(reached.min()), int(reached.max())) == (2, 2 * radius + 2)


def test_by_name_in_files_models_and_benchmarks(tmp_path: Path) -> None:
    model = DIINN(encoder="carn")
    model.save_pretrained(tmp_path / "folder")
    torch.save({"params": model.state_dict()}, tmp_path / "plain.pt")
    for name in ("folder", "plain.pt"):
        loaded = load_model(tmp_path / name)
        assert isinstance(loaded, DIINN) and isinstance(loaded.encoder, CARN)
    macs = sum(p.numel() for p in make_encoder("carn").parameters() if p.ndim == 4)
    decode = Case("decode", (48, 48), 2)
    whole = Case("model", (48, 48), 2, encoder="carn")
    assert whole.flops("cpu") - decode.flops("cpu") == 2 * macs * 48**2


def test_by_name_in_training() -> None:
    from diinn_fast.training.module import SRModule

    net = SRModule(encoder="carn", mode=3).net
    net(torch.rand(1, 3, 6, 6), (9, 9)).sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_tiles_with_the_whole_halo_are_bitwise_the_image() -> None:
    carn = CARN().eval()
    halo = carn.receptive_radius
    x = torch.rand(1, 3, 60, 150)
    with torch.inference_mode():
        whole = carn(x)
        for left, right in ((0, 40), (41, 90), (120, 150)):
            start = max(left - halo, 0)
            tile = carn(x[..., start : right + halo].contiguous())
            assert tile[..., left - start : right - start].equal(whole[..., left:right])


@pytest.mark.long
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux's peak memory")
def test_a_memory_bound_is_kept(tmp_path: Path) -> None:
    """In a process of its own, with a bound that makes it cut the picture; and it is the same
    picture.
    """
    source = tmp_path / "in.png"
    PIL.Image.fromarray(picture(220, 240)).save(source)
    case = {"encoder": "carn", "picture": str(source), "out": str(tmp_path / "out.npy")}
    run = fresh({**case, "scale": 1, "bound": imported_bytes() + 150 * MIB})
    assert run["held"], run
    assert run["tiles"] != [1, 1], run
    torch.manual_seed(0)
    upscaler = Upscaler(DIINN(encoder="carn").eval(), device="cpu", precision="fp32")
    whole = upscaler(picture(220, 240), scale=1)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), whole)
