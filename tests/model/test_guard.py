"""What users do to the inside of a model has its effect: the layers are called where they differ
from what was built.

Each edit is judged by the literal definition of calling every layer, written here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

from diinn_fast import DIINN, ImplicitDecoder, guard, plain, reference
from diinn_fast.encoders import RDN
from diinn_fast.errors import EditError
from tests.helpers.problems import make_decoder

SIZE = (9, 13)
LR = (5, 6)


def by_calls(decoder: ImplicitDecoder, features: Tensor, size: tuple[int, int] = SIZE) -> Tensor:
    """The published class's forward in mode 3: every layer is called on the whole grid."""
    h, w = features.shape[-2:]
    rows, columns = torch.arange(size[0]), torch.arange(size[1])
    p, i, j = reference.position((h, w), size, rows, columns, features.dtype)
    x = F.unfold(features, 3, padding=1).view(len(features), -1, h, w)[:, :, i][..., j]
    k = decoder.K[0](x)
    q = k * decoder.Q[0](p.expand(len(features), -1, -1, -1))
    for n in range(1, len(decoder.K)):
        k = decoder.K[n](torch.cat([q, x], dim=1))
        q = k * decoder.Q[n](q)
    result: Tensor = decoder.last_layer(q)
    return result


class FastSine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(30 * x)


class Adapter(nn.Module):
    """A low-rank adapter around a convolution, as adapter libraries make them."""

    def __init__(self, base: Any) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Conv2d(base.in_channels, 2, 1)
        self.up = nn.Conv2d(2, base.out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.base(x) + self.up(self.down(x))
        return result


class Doubled(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def own_forward(layer: Any) -> None:
    forward = layer.forward
    layer.forward = lambda x: 2 * forward(x)


def replace(layers: Any, n: int, m: int, module: Any) -> None:
    layers[n][m] = module


def adapt(decoder: ImplicitDecoder) -> None:
    for layers in (decoder.K, decoder.Q):
        for layer in layers:
            layer[0] = Adapter(layer[0])


def double(decoder: ImplicitDecoder) -> None:
    old = decoder.K[1][0]
    decoder.K[1][0] = Doubled(old.in_channels, old.out_channels, 1)


def offload(decoder: ImplicitDecoder) -> None:
    """Weights that are there during a layer's call alone."""
    for layer in decoder.modules():
        if isinstance(layer, nn.Conv2d):
            weight = layer.weight.data.clone()
            layer.weight = nn.Parameter(torch.empty_like(weight, device="meta"))

            def fetch(layer: Any, _: Any, weight: Any = weight) -> None:
                layer.weight = nn.Parameter(weight)

            def drop(layer: Any, *_: Any) -> None:
                layer.weight = nn.Parameter(torch.empty_like(layer.weight, device="meta"))

            layer.register_forward_pre_hook(fetch)
            layer.register_forward_hook(drop)


EDITS: dict[str, Callable[..., Any]] = {
    "activation": lambda d: replace(d.K, 1, 1, nn.GELU()),
    "sine": lambda d: replace(d.Q, 0, 1, FastSine()),
    "extra module": lambda d: d.K[1].append(nn.Tanh()),
    "hook": lambda d: d.K[0].register_forward_hook(lambda m, x, y: y + 1),
    "hook before": lambda d: d.K[2][0].register_forward_pre_hook(lambda m, x: (2 * x[0],)),
    "own forward": lambda d: own_forward(d.Q[1][0]),
    "own forward of a layer": lambda d: own_forward(d.K[2]),
    "subclass": double,
    "adapter": adapt,
    "last layer": lambda d: setattr(d, "last_layer", nn.Sequential(d.last_layer, nn.Sigmoid())),
    "last layer of 3x3": lambda d: setattr(d, "last_layer", nn.Conv2d(d.width, 3, 3, padding=1)),
    "3x3 inside": lambda d: replace(d.Q, 1, 0, nn.Conv2d(d.width, d.width, 3, padding=1)),
    "normalisation over the image": lambda d: d.K[1].append(nn.InstanceNorm2d(d.width)),
    "groups": lambda d: replace(d.Q, 2, 0, nn.Conv2d(d.width, d.width, 1, groups=4)),
    "old weight_norm": lambda d: weight_norm(d.K[1][0]),
    "old spectral_norm": lambda d: spectral_norm(d.K[1][0].eval()),
    "pruned": lambda d: prune.l1_unstructured(d.Q[1][0], "weight", 0.5),
    "offloaded": offload,
}


@pytest.fixture
def features() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(2, 8, *LR)


def decoder_with(edit: Any) -> Any:
    torch.manual_seed(0)
    decoder = make_decoder(3, width=32, channels=8, layers=3)
    EDITS[edit](decoder)
    return decoder.eval()


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("grad", [False, True])
def test_an_edit_of_the_decoder_has_its_effect(edit: str, grad: bool, features: Tensor) -> None:
    decoder = decoder_with(edit)
    with torch.set_grad_enabled(grad):
        want = by_calls(decoder, features)
        got = decoder(features, SIZE)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("edit", ["adapter", "old weight_norm", "activation", "pruned"])
def test_an_edited_decoder_trains(edit: str, features: Tensor) -> None:
    decoder = decoder_with(edit)
    for _ in range(2):
        decoder(features, SIZE).square().mean().backward()
    assert all(p.grad is not None for p in decoder.parameters())


@pytest.mark.parametrize("edit", ["hook", "3x3 inside", "last layer of 3x3", "adapter"])
def test_windows_chunks_and_points_of_an_edited_decoder(edit: str, features: Tensor) -> None:
    decoder = decoder_with(edit)
    with torch.no_grad():
        whole = by_calls(decoder, features)
        window = decoder(features, SIZE, window=(3, 7, 2, 5))
        chunked = decoder(features, SIZE, bsize=20)
        torch.testing.assert_close(window, whole[:, :, 3:7, 2:5])
        torch.testing.assert_close(chunked, whole)
        if "3x3" not in edit:
            yx = torch.randint(0, 9, (2, 17, 2))
            points = decoder.sample_pixels(features, yx, SIZE)
            want = torch.stack([whole[b][:, yx[b, :, 0], yx[b, :, 1]].t() for b in range(2)])
            torch.testing.assert_close(points, want)


def test_hooks_that_watch_see_every_layer_once_with_the_whole_image(features: Tensor) -> None:
    decoder = make_decoder(3, width=32, channels=8, layers=3)
    seen = []
    for layer in [*decoder.K, *decoder.Q, decoder.last_layer]:
        layer.register_forward_hook(lambda m, x, y: seen.append(y.shape))
    with torch.no_grad():
        decoder(features, SIZE)
    assert [tuple(shape[2:]) for shape in seen] == [SIZE] * 7


def test_hooks_for_all_modules_see_every_layer(features: Tensor) -> None:
    decoder = make_decoder(3, width=32, channels=8, layers=3)
    seen = []
    hook = nn.modules.module.register_module_forward_hook(lambda m, x, y: seen.append(m))
    try:
        decoder(features, SIZE)
    finally:
        hook.remove()
    assert {*decoder.modules()} - {decoder, decoder.K, decoder.Q} == {*seen} - {decoder}


class Counted(nn.Module):
    calls = 0

    def forward(self, weight: Tensor) -> Tensor:
        Counted.calls += 1
        return 2 * weight


@pytest.mark.parametrize("norm", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_parametrizations_are_taken_by_the_operator(
    norm: Any, features: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    decoder = make_decoder(3, width=32, channels=8, layers=3)
    for layer in decoder.K:
        norm(layer[0])
    assert decoder.eval().edit() is None
    torch.testing.assert_close(decoder(features, SIZE), by_calls(decoder, features))


@pytest.mark.parametrize("mode", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [SIZE, (3, 4)])
def test_a_parametrization_is_evaluated_once_per_forward(
    mode: int, size: tuple[int, int], features: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diinn_fast.fused.STRIP_BYTES", 8000)  # several strips
    decoder = make_decoder(mode, width=32, channels=8, layers=3)
    convolutions = [layer[0] for layer in [*decoder.K, *decoder.Q]]
    for convolution in convolutions:
        parametrize.register_parametrization(convolution, "weight", Counted())
    Counted.calls = 0
    with torch.no_grad():
        decoder(features, size)
    assert Counted.calls == len(convolutions)


def test_the_log_says_once_why_it_is_slow(
    features: Tensor, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "_said", set())
    decoder = decoder_with("activation")
    with caplog.at_level(logging.WARNING, "diinn_fast"):
        decoder(features, SIZE)
        decoder(features, SIZE)
    (line,) = caplog.messages
    assert "decoder.K[1] [1] is a GELU, not a ReLU" in line


@pytest.mark.parametrize("mode", [1, 2, 3, 4])
@pytest.mark.parametrize("init_q", [False, True])
def test_a_decoder_as_built_needs_no_calls(mode: int, init_q: bool) -> None:
    assert make_decoder(mode, init_q, width=32, channels=8, layers=3).edit() is None


# -- the encoder -----------------------------------------------------------------------------------


def small_rdn() -> RDN:
    torch.manual_seed(0)
    return RDN(channels=8, growth=4, blocks=2, convs=3)


def normalise(encoder: Any) -> None:
    for module in encoder.RDBs.modules():
        if type(module) is nn.Conv2d:
            spectral_norm(module.eval())


RDN_EDITS: dict[str, Callable[..., Any]] = {
    "activation": lambda e: setattr(e.RDBs[0].convs[1], "conv", _with(e.RDBs[0].convs[1].conv)),
    "hook on a convolution": lambda e: (
        e.RDBs[1].convs[0].conv[0].register_forward_hook(lambda m, x, y: y + 1)
    ),
    "hook on a block": lambda e: e.RDBs[1].register_forward_hook(lambda m, x, y: y + 1),
    "hook on the fusion": lambda e: e.GFF[0].register_forward_hook(lambda m, x, y: y + 1),
    "block": lambda e: e.RDBs.__setitem__(0, nn.Conv2d(8, 8, 3, padding=1)),
    "adapter": lambda e: setattr(e.RDBs[0], "LFF", Adapter(e.RDBs[0].LFF)),
    "old spectral_norm": normalise,
    "own forward": lambda e: own_forward(e.RDBs[1].convs[2]),
    "no bias": lambda e: setattr(e.RDBs[0], "LFF", nn.Conv2d(20, 8, 1, bias=False)),
}


def _with(conv: Any) -> Any:
    return nn.Sequential(conv[0], nn.Tanh())


@pytest.mark.parametrize("edit", RDN_EDITS)
def test_an_edit_of_the_encoder_has_its_effect_without_gradients_too(edit: str) -> None:
    encoder = small_rdn()
    RDN_EDITS[edit](encoder)
    encoder.eval()
    x = torch.randn(1, 3, 40, 40)
    want = encoder(x).detach()  # with gradients the modules are called
    with torch.no_grad():
        for got in (encoder(x), encoder(x, work_bytes=60_000)):
            assert (got - want).norm() <= 1e-5 * want.norm()


def test_an_encoder_as_built_needs_no_calls() -> None:
    encoder = small_rdn()
    assert encoder.edit() is None
    assert [block.edit() for block in encoder.RDBs] == [None, None]


def test_a_whole_model_with_an_edit(features: Tensor) -> None:
    model = DIINN(encoder=small_rdn())
    model.decoder.K[1][1] = nn.GELU()
    x = torch.randn(1, 3, *LR)
    want = by_calls(model.decoder, model.encoder(x))
    with torch.no_grad():
        torch.testing.assert_close(model(x, SIZE), want, rtol=1e-4, atol=1e-5)


# -- what cannot be had ----------------------------------------------------------------------------


class WithStep(ImplicitDecoder):
    """As somebody writes who knows the published class."""

    def step(self, x: Tensor, syn_inp: Tensor) -> Tensor:
        return x


def test_methods_that_would_not_be_called_are_refused(
    features: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = make_decoder(3, width=32, channels=8, layers=3)
    vars(decoder)["_make_pos_encoding"] = lambda x, size: x
    with pytest.raises(EditError, match=r"decoder\._make_pos_encoding is not called here"):
        decoder(features, SIZE)
    with pytest.raises(EditError, match=r"decoder\.step is not called here"):
        WithStep(8, [32] * 3, mode=3)(features, SIZE)
    monkeypatch.setattr(ImplicitDecoder, "batched_step", lambda self: None, raising=False)
    with pytest.raises(EditError, match=r"decoder\.batched_step is not called here"):
        make_decoder(3, width=32, channels=8, layers=3)(features, SIZE)


def test_a_part_of_a_picture_is_refused_where_a_layer_sees_all_of_it(features: Tensor) -> None:
    decoder = make_decoder(3, width=32, channels=8, layers=3)
    decoder.K[1].append(nn.InstanceNorm2d(32))
    with torch.no_grad():
        assert decoder(features, SIZE, window=(0, *SIZE[:1], 0, *SIZE[1:])).shape[2:] == SIZE
        with pytest.raises(EditError, match="InstanceNorm2d, which looks at the whole picture"):
            decoder(features, SIZE, window=(2, 5, 1, 9))


def test_parts_of_pictures_with_unknown_layers_are_logged(
    features: Tensor, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "_said", set())
    decoder = decoder_with("adapter")
    with caplog.at_level(logging.WARNING, "diinn_fast"), torch.no_grad():
        decoder(features, SIZE)
        assert not any("single pixels" in line for line in caplog.messages)
        decoder(features, SIZE, window=(2, 5, 1, 9))
    assert any("as if Adapter looked at single pixels" in line for line in caplog.messages)


@pytest.mark.parametrize(
    "layer", [nn.InstanceNorm2d(8), nn.AdaptiveAvgPool2d(1), Adapter(nn.Conv2d(8, 8, 1))]
)
def test_an_encoder_with_a_layer_that_may_see_everything_is_not_cut(layer: nn.Module) -> None:
    encoder = small_rdn()
    assert encoder.receptive_radius == 9
    encoder.GFF.append(layer)
    assert getattr(encoder, "receptive_radius", None) is None


def test_a_normalised_batch_is_cut_in_evaluation_alone() -> None:
    encoder = small_rdn()
    encoder.GFF.append(nn.BatchNorm2d(8))
    assert getattr(encoder, "receptive_radius", None) is None
    assert encoder.eval().receptive_radius == 9


def test_functions_that_were_replaced_see_the_whole_picture(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decoder = make_decoder(3, False)
    features = torch.randn(1, decoder.in_channels, *LR)
    monkeypatch.setattr(plain, "CHUNK", 20)
    monkeypatch.setattr(F, "relu", lambda x, inplace=False: x - x.mean())
    with torch.no_grad():
        expected = by_calls(decoder, features)
        torch.testing.assert_close(decoder(features, SIZE), expected, rtol=1e-4, atol=1e-5)
