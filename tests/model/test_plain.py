"""The path that calls the decoder's layers one by one: against the definition, and against the
operator.
"""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from diinn_fast import use_backend
from diinn_fast.backends import requested
from diinn_fast.errors import BackendError
from diinn_fast.ops import decode
from tests.helpers.problems import MODES, make_decoder, oracle


@pytest.mark.parametrize(("mode", "init_q"), MODES)
@pytest.mark.parametrize("size", [(9, 14), (4, 3)])
def test_it_is_the_definition_in_float64(
    mode: int, init_q: bool, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diinn_fast.plain.CHUNK", 30)  # several strips, several chunks of points
    decoder = make_decoder(mode, init_q, width=32, channels=8, layers=3).double()
    features = torch.randn(2, 8, 5, 6, dtype=torch.float64)
    want = oracle(decoder, features, size)
    for got in (
        decoder(features, size, backend="plain"),
        decoder(features, size, bsize=5, backend="plain"),
        decoder(features, size),
    ):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-13)
    window = decoder(features, size, window=(1, 3, 1, 2), backend="plain")
    torch.testing.assert_close(window, want[:, :, 1:3, 1:2], rtol=0, atol=1e-13)


@pytest.mark.parametrize(("mode", "init_q"), MODES[:6])
def test_points_are_the_operators(mode: int, init_q: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diinn_fast.plain.CHUNK", 9)
    decoder = make_decoder(mode, init_q, width=32, channels=8, layers=3).double()
    features = torch.randn(2, 8, 5, 6, dtype=torch.float64)
    coords = torch.rand(2, 40, 2, dtype=torch.float64) * 2 - 1
    for size in ((9, 14), [(9, 14), (20, 21)]):
        want = decoder.sample(features, coords, size)
        got = decoder.sample(features, coords, size, backend="plain")
        torch.testing.assert_close(got, want, rtol=0, atol=1e-13)


@pytest.mark.parametrize("mode", [1, 3, 4])
def test_gradients_are_the_operators(mode: int) -> None:
    decoder = make_decoder(mode, width=32, channels=8, layers=3).double()
    features = torch.randn(1, 8, 5, 6, dtype=torch.float64, requires_grad=True)
    inputs = [features, *decoder.parameters()]
    gradients = [
        torch.autograd.grad(decoder(features, (9, 14), backend=name).square().sum(), inputs)
        for name in ("plain", "eager")
    ]
    for plain, fused in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, fused)


def test_16_bit_and_autocast() -> None:
    decoder = make_decoder(3, width=32, channels=8, layers=3)
    features = torch.randn(1, 8, 5, 6)
    want = decoder(features, (9, 14))
    with torch.autocast("cpu", torch.bfloat16):
        cast = decoder(features, (9, 14), backend="plain")
    narrow = decoder.bfloat16()(features.bfloat16(), (9, 14), backend="plain")
    for got in (cast, narrow):
        assert got.dtype == torch.bfloat16
        assert (got - want).norm() <= 0.05 * want.norm()


def test_it_is_chosen_by_name_for_a_block_of_code() -> None:
    decoder = make_decoder(3, width=32, channels=8, layers=3)
    seen = []
    features = torch.randn(1, 8, 5, 6)
    with use_backend("plain"):
        assert requested() == "plain"
        handle = decoder.register_forward_hook(lambda *_: seen.append(1))
        out = decoder(features, (9, 14))
        handle.remove()
    torch.testing.assert_close(out, decoder(features, (9, 14)))
    assert decoder.backend_for((5, 6), (9, 14), features, "plain") == "plain"


def test_the_operator_itself_has_no_plain_backend() -> None:
    with pytest.raises(BackendError, match="ImplicitDecoder"):
        decode(
            torch.zeros(1, 2, 2, 8), [torch.zeros(1)] * 6,
            form="content", mode=3, lr=(2, 2), size=(4, 4), backend="plain",
        )  # fmt: skip


def test_flops_are_counted_as_of_the_published_class() -> None:
    """Per query: K_0 of 72, K_i of 32 + 72, Q_0 of 3, Q_i of 32, and the last layer."""
    decoder = make_decoder(3, width=32, channels=8, layers=3)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        decoder(torch.randn(1, 8, 5, 6), (9, 14))
    per_query = 32 * (72 + 2 * (32 + 72) + 3 + 2 * 32) + 3 * 32
    assert counter.get_total_flops() == 2 * 9 * 14 * per_query


def test_modules_of_unknown_kind_see_the_whole_image() -> None:
    decoder = make_decoder(3, width=32, channels=8, layers=3)
    decoder.K[0].append(nn.InstanceNorm2d(32))
    shapes = []
    decoder.K[0][2].register_forward_hook(lambda m, x, y: shapes.append(tuple(y.shape)))
    with torch.no_grad():
        decoder(torch.randn(1, 8, 5, 200), (40, 1600))
    assert shapes == [(1, 32, 40, 1600)]
