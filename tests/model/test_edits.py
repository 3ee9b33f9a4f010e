"""Whatever is done to the inside of the published model does the same to ours, in values, gradients
and a step of training: no edit is ignored.
"""

from __future__ import annotations

import pytest
import torch

from diinn_fast import plain
from tests.helpers.edits import EDITS, SILENT
from tests.helpers.side_by_side import compare, effect, other_mode
from tests.helpers.threads import one_thread

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Anomaly Detection"),
]


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_does_what_it_does_to_the_published_model(name: str) -> None:
    with one_thread():
        assert compare(name, 3, False, torch.float64) == []


@pytest.mark.long
@pytest.mark.parametrize("name", EDITS)
def test_it_does_so_in_another_mode_and_in_float32(name: str) -> None:
    with one_thread():
        assert compare(name, *other_mode(name), torch.float32) == []


STRIPS = (
    "GELU in K", "dropout", "attention of K", "a 3x3 last layer", "a hook on K",
    "a hook for all convolutions", "patched: torch.sin", "under a mode for functions",
)  # fmt: skip
"""Edits of larger pictures, which the plain path may cut into strips."""


@pytest.mark.parametrize("name", STRIPS)
def test_an_edit_of_a_large_picture_does_the_same(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plain, "CHUNK", 20)
    with one_thread():
        assert compare(name, 3, False, torch.float64) == []


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in EDITS if name not in SILENT])
def test_the_edit_has_an_effect_at_all(name: str) -> None:
    with one_thread():
        assert effect(name) > 1e-5
