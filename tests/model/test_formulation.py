"""The table of formulations: what follows from a mode, and which form decodes what."""

import pytest

from diinn_fast import ImplicitDecoder
from diinn_fast.formulation import FORMULATIONS, formulation, modes_with
from diinn_fast.training.ablation import VARIANTS


@pytest.mark.parametrize(
    ("mode", "init_q", "queries", "form"),
    [
        (1, False, 20, "modulation"),
        (2, False, 21, "modulation"),
        (3, False, 20, "content"),
        (4, False, 99, "content"),
        (3, False, 19, "direct"),  # fewer queries than LR pixels: projecting costs more
        (1, False, 1, "direct"),
        (3, True, 99, "direct"),  # nothing can be projected
    ],
)
def test_form_of_a_4x5_image(mode: int, init_q: bool, queries: int, form: str) -> None:
    assert formulation(mode, init_q).form((4, 5), queries) == form


def test_an_unknown_mode_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="mode must be 1, 2, 3 or 4, got 5"):
        formulation(5)


@pytest.mark.parametrize("mode", FORMULATIONS)
def test_modes_are_recognised_by_the_shapes_of_their_tensors(mode: int) -> None:
    decoder = ImplicitDecoder(8, [32, 32], mode=mode)
    hidden = decoder.K[1][0].weight.shape
    kernel = decoder.last_layer.weight.shape[-1]
    found = modes_with(content=hidden[0] != hidden[1], kernel=kernel)
    assert mode in found
    assert found in ([1], [2, 3], [4])  # modes 2 and 3 have the same tensors


def test_the_ablation_trains_every_formulation() -> None:
    assert VARIANTS == [
        (1, False), (1, True), (2, False), (2, True), (3, False), (3, True), (4, False),
    ]  # fmt: skip
