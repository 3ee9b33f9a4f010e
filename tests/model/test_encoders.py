"""Encoders: sizes and names as published, the literal function in float64, and tiles that equal the
whole.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diinn_fast.encoders import (
    EDSR,
    ENCODERS,
    RDB,
    RDN,
    Cost,
    cost_of,
    detect_encoder,
    fast_layout,
    make_encoder,
)
from diinn_fast.encoders.base import convolution_macs


def literal_rdn(state: dict[str, Tensor], x: Tensor, blocks: int, convs: int) -> Tensor:
    """RDN as its paper writes it: dense blocks, global feature fusion, global residual; one dtype
    throughout.
    """

    def conv(name: str, value: Tensor) -> Tensor:
        weight = state[f"{name}.weight"]
        return F.conv2d(value, weight, state[f"{name}.bias"], padding=weight.shape[-1] // 2)

    shallow = conv("SFENet1", x)
    block_input = conv("SFENet2", shallow)
    outputs = []
    for d in range(blocks):
        dense = block_input
        for c in range(convs):
            dense = torch.cat([dense, torch.relu(conv(f"RDBs.{d}.convs.{c}.conv.0", dense))], dim=1)
        block_input = conv(f"RDBs.{d}.LFF", dense) + block_input
        outputs.append(block_input)
    return conv("GFF.1", conv("GFF.0", torch.cat(outputs, dim=1))) + shallow


def literal_edsr(state: dict[str, Tensor], x: Tensor, blocks: int) -> Tensor:
    def conv(name: str, value: Tensor) -> Tensor:
        return F.conv2d(value, state[f"{name}.weight"], state[f"{name}.bias"], padding=1)

    head = conv("head.0", x)
    body = head
    for d in range(blocks):
        body = body + conv(f"body.{d}.body.2", torch.relu(conv(f"body.{d}.body.0", body)))
    return head + conv(f"body.{blocks}", body)


def literal(encoder: nn.Module, x: Tensor, dtype: torch.dtype) -> Tensor:
    state = {k: v.to(dtype) for k, v in encoder.state_dict(keep_vars=True).items()}
    if isinstance(encoder, RDN):
        return literal_rdn(state, x.to(dtype), len(encoder.RDBs), len(encoder.RDBs[0].convs))
    return literal_edsr(state, x.to(dtype), len(encoder.body) - 1)


# Small ones, and an RDN whose dense blocks are wide enough to be summed in several groups.
SMALL: dict[str, Callable[..., Any]] = {
    "rdn": lambda: RDN(channels=24, growth=8, blocks=2, convs=3),
    "wide rdn": lambda: RDN(channels=48, growth=80, blocks=2, convs=5),
    "edsr": lambda: EDSR(channels=16, blocks=3),
}


@pytest.fixture(params=SMALL)
def encoder(request: pytest.FixtureRequest) -> nn.Module:
    encoder: nn.Module = SMALL[request.param]()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.mul_(1.5)  # so that every layer matters in the output
    return encoder


def test_rdn_has_the_published_parameters() -> None:
    state = RDN().state_dict()
    assert sum(v.numel() for v in state.values()) == 21_973_952
    assert state["SFENet1.weight"].shape == (64, 3, 3, 3)
    assert state["RDBs.15.convs.7.conv.0.weight"].shape == (64, 64 * 8, 3, 3)
    assert state["RDBs.0.LFF.weight"].shape == (64, 64 * 9, 1, 1)
    assert state["GFF.0.weight"].shape == (64, 64 * 16, 1, 1)
    assert state["GFF.1.bias"].shape == (64,)
    assert len(state) == 2 * (2 + 16 * 9 + 2)


def test_edsr_baseline_has_the_published_parameters() -> None:
    state = EDSR().state_dict()
    assert sum(v.numel() for v in state.values()) == 64 * 28 + 33 * 64 * (64 * 9 + 1)
    assert {
        "head.0.weight",
        "body.0.body.0.weight",
        "body.15.body.2.bias",
        "body.16.weight",
    } <= set(state)
    assert len(state) == 2 * (1 + 2 * 16 + 1)


@pytest.mark.parametrize("size", [(1, 1), (5, 9), (17, 12)])
@pytest.mark.parametrize("grad", [False, True])
def test_equals_the_literal_formulation(
    encoder: nn.Module, size: tuple[int, int], grad: bool
) -> None:
    x = torch.rand(2, 3, *size) * 2 - 1
    with torch.set_grad_enabled(grad):
        exact = literal(encoder, x, torch.float64)
        ours = encoder(x)
        plain = literal(encoder, x, torch.float32)
        twice = encoder.double()(x.double())
    error = float((ours - exact).detach().norm())
    plain_error = float((plain - exact).detach().norm())
    assert ours.dtype == torch.float32 and ours.requires_grad == grad
    assert error <= 2 * plain_error + 1e-7 * float(exact.detach().norm())
    torch.testing.assert_close(twice, exact, rtol=1e-12, atol=1e-12)


def test_the_plain_formulation_is_the_same_function(encoder: nn.Module) -> None:
    x = torch.rand(1, 3, 6, 7)
    with torch.no_grad():
        plain = encoder.plain(x)
        torch.testing.assert_close(plain, encoder(x), rtol=1e-4, atol=1e-5)
    assert plain.is_contiguous()


def test_gradients_equal_the_literal_formulation(encoder: nn.Module) -> None:
    encoder.train()
    x = torch.rand(1, 3, 7, 6, requires_grad=True)
    parameters = list(encoder.parameters())

    def gradients(out: Tensor) -> tuple[Tensor, ...]:
        weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
        return torch.autograd.grad((out * weight).sum(), [x, *parameters])

    exact = gradients(literal(encoder, x, torch.float64))
    plain = gradients(literal(encoder, x, torch.float32))
    for ours, theirs, true in zip(gradients(encoder(x)), plain, exact, strict=True):
        scale = float(true.abs().max())
        assert (
            float((ours - true).abs().max())
            <= 2 * float((theirs - true).abs().max()) + 1e-6 * scale
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_is_close(encoder: nn.Module, dtype: torch.dtype) -> None:
    x = torch.rand(1, 3, 8, 9)
    with torch.no_grad():
        exact = encoder(x)
        out = encoder.to(dtype)(x.to(dtype))
        plain = literal(encoder, x, dtype)
    assert out.dtype == dtype
    error = float((out.float() - exact).norm())
    plain_error = float((plain.float() - exact).norm())
    assert error <= 2 * plain_error


def test_without_gradients_nothing_is_changed_in_place(encoder: nn.Module) -> None:
    x = torch.rand(1, 3, 6, 5)
    before = x.clone()
    with torch.inference_mode():
        first = encoder(x)
        second = encoder(x)
    assert torch.equal(x, before) and torch.equal(first, second)


class Twice(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


@pytest.mark.parametrize("body", [nn.Identity(), nn.Sequential(nn.Identity())])
def test_a_body_may_give_what_it_was_given(body: nn.Module) -> None:
    x = torch.rand(1, 3, 6, 5)
    edsr: Any = make_encoder("edsr-baseline")
    carn: Any = make_encoder("carn")
    with torch.no_grad():
        edsr.body[0].body = carn.b1.b1.body = body
        found = [edsr(x), carn(x)]
        edsr.body[0] = Twice()
        carn.b1.b1 = nn.Sequential(Twice(), nn.ReLU())
        torch.testing.assert_close(found, [edsr(x), carn(x)])


def test_what_a_hook_kept_of_a_body_stays() -> None:
    encoder: Any = make_encoder("edsr-baseline")
    kept: list[tuple[Tensor, Tensor]] = []
    for body in (encoder.body[0].body, encoder.body):
        body.register_forward_hook(lambda m, x, y: kept.append((y, y.clone())))
    with torch.no_grad():
        encoder(torch.rand(1, 3, 6, 5))
    assert len(kept) == 2
    assert all(torch.equal(now, then) for now, then in kept)


def test_dense_block_sums_agree_with_and_without_gradients() -> None:
    block = RDB(channels=64, growth=64, convs=8)
    x = fast_layout(torch.rand(1, 64, 24, 24))
    kept = x.clone()
    with torch.no_grad():
        split = block(x)
    torch.testing.assert_close(split, block(x).detach(), rtol=1e-5, atol=1e-6)
    assert torch.equal(x, kept)
    assert split.is_contiguous(memory_format=torch.channels_last)


def test_tiles_with_the_whole_halo_are_bitwise_the_image() -> None:
    """What tiled inference rests on: a dense block's receptive radius is its number of
    convolutions.
    """
    block = RDB(channels=64, growth=64, convs=8)
    x = fast_layout(torch.rand(1, 64, 24, 160))
    with torch.no_grad():
        whole = block(x)
        for left, right in ((0, 40), (31, 70), (120, 160)):
            start = max(left - 8, 0)
            stop = min(right + 8, 160)
            tile = block(fast_layout(x[..., start:stop]))
            assert torch.equal(tile[..., left - start : right - start], whole[..., left:right])


@pytest.mark.parametrize("work_bytes", [1, 1 << 20])
def test_pieces_of_dense_blocks_are_bitwise_the_whole(work_bytes: int) -> None:
    """Sizes with a short side included, whose pieces are long."""
    rdn = RDN(blocks=1, convs=4)
    for size in ((40, 61), (9, 140), (130, 11), (5, 7)):
        x = torch.rand(1, 3, *size)
        with torch.inference_mode():
            assert torch.equal(rdn(x, work_bytes), rdn(x))


def test_pieces_hold_what_they_say() -> None:
    """The dense features of one piece, and of no more, are computed at a time."""
    block = RDB(channels=64, growth=64, convs=2)
    most = 0
    infer = block._infer

    def counted(x: Tensor) -> Tensor:
        nonlocal most
        most = max(most, x[0, 0].numel() * block.dense_floats * 4)
        return infer(x)

    block._infer = counted  # type: ignore[method-assign]
    with torch.inference_mode():
        block.in_pieces(fast_layout(torch.rand(1, 64, 90, 70)), 3 << 20)
    assert 1 << 20 < most <= 3 << 20


@pytest.mark.parametrize(("encoder", "radius"), [(RDN, 131), (EDSR, 34)])
def test_receptive_radius_of_the_published_encoders(encoder: type, radius: int) -> None:
    with torch.device("meta"):
        assert encoder().receptive_radius == radius


def test_a_pixel_reaches_exactly_the_receptive_radius(encoder: nn.Module) -> None:
    """In float64, where nothing of a changed pixel is lost to rounding."""
    encoder, radius = encoder.double(), encoder.receptive_radius
    with torch.inference_mode():
        for parameter in encoder.parameters():
            parameter.abs_()  # no ReLU is idle
        x = torch.rand(1, 3, 1, 2 * radius + 5, dtype=torch.float64)
        poked = x.clone()
        poked[..., radius + 2] += 10
        reached = (encoder(poked) != encoder(x)).any(dim=1)[0, 0].nonzero()
    assert (int(reached.min()), int(reached.max())) == (2, 2 * radius + 2)


def test_layout_is_chosen_by_device_and_dtype() -> None:
    x = torch.rand(1, 3, 4, 5)
    assert fast_layout(x).is_contiguous(memory_format=torch.channels_last)
    assert fast_layout(x.double()).is_contiguous()


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_is_detected_by_its_own_keys_alone(name: str) -> None:
    with torch.device("meta"):
        keys = list(make_encoder(name).state_dict())
    assert [other for other, encoder in ENCODERS.items() if encoder.detect(keys)] == [name]
    assert detect_encoder(keys) == name
    assert detect_encoder(["features.0.weight"]) is None


@pytest.mark.parametrize("name", ENCODERS)
def test_the_docs_state_its_size(name: str) -> None:
    with torch.device("meta"):
        encoder = ENCODERS[name]()
    text = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
    (line,) = (line for line in text.splitlines() if line.startswith(f"| `{name}`"))
    parameters = sum(p.numel() for p in encoder.parameters())
    figures = [f"{n:,}" for n in (parameters, convolution_macs(encoder), encoder.receptive_radius)]
    assert [cell.strip() for cell in line.strip("|").split("|")][1:] == figures


def test_an_encoder_without_a_stated_cost_is_guessed() -> None:
    class Stated(nn.Identity):
        cost = Cost(floats=7, floats_bounded=6)

    assert cost_of(Stated()) == Cost(7, 6)
    assert cost_of(nn.Identity()) == Cost()
    assert cost_of(EDSR(16, 1)).floats < Cost().floats


def test_make_encoder_by_name_or_module() -> None:
    module = nn.Conv2d(3, 64, 3, padding=1)
    assert make_encoder(module) is module
    assert isinstance(make_encoder("edsr-baseline"), EDSR)
    with pytest.raises(
        ValueError, match="unknown encoder 'vgg': choose one of rdn, edsr-baseline, carn"
    ):
        make_encoder("vgg")
