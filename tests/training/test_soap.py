"""SOAP against its formula, against Adam, and in runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from diinn_fast.training.soap import LARGEST, Soap
from tests.helpers.threads import one_thread
from tests.helpers.train_small import assert_same_state, checkpoint, make_photos, run


@pytest.fixture(scope="module", autouse=True)
def threads() -> Iterator[None]:
    with one_thread():
        yield


def descend(p: Tensor, gradients: list[Tensor], optimizer: torch.optim.Optimizer) -> None:
    for gradient in gradients:
        p.grad = gradient.clone()
        optimizer.step()


def test_steps_are_those_of_the_formula() -> None:
    """In float64; the eigenvectors are taken up after the third and sixth steps."""
    generator = torch.Generator().manual_seed(0)
    p = torch.randn(20, 2, 3, 3, dtype=torch.float64, generator=generator)
    gradients = [torch.randn(p.shape, dtype=torch.float64, generator=generator) for _ in range(9)]
    expected = p.flatten(1).clone()
    rows = gradients[0].flatten(1) @ gradients[0].flatten(1).T
    columns = gradients[0].flatten(1).T @ gradients[0].flatten(1)
    # The bases begin in float32, which leaves them orthogonal to rounding of that alone.
    u = torch.linalg.eigh(rows.float())[1].flip(1).double()
    v = torch.linalg.eigh(columns.float())[1].flip(1).double()
    mean, square = torch.zeros_like(expected), torch.zeros_like(expected)
    for n, each in enumerate(gradients[1:], 1):
        g = each.flatten(1)
        mean = 0.8 * mean + 0.2 * g
        square = 0.7 * square + 0.3 * (u.T @ g @ v) ** 2
        turned = (u.T @ mean @ v) / (1 - 0.8**n) / ((square / (1 - 0.7**n)).sqrt() + 1e-10)
        expected -= 0.01 * (u @ turned @ v.T)
        rows = 0.9 * rows + 0.1 * g @ g.T
        columns = 0.9 * columns + 0.1 * g.T @ g
        if n % 3 == 0:
            order = (u.T @ rows @ u).diagonal().argsort(descending=True)
            u, square = torch.linalg.qr((rows @ u)[:, order])[0], square[order]
            order = (v.T @ columns @ v).diagonal().argsort(descending=True)
            v, square = torch.linalg.qr((columns @ v)[:, order])[0], square[:, order]
    descend(p, gradients, Soap([p], 0.01, (0.8, 0.7), decay=0.9, every=3))
    torch.testing.assert_close(p.flatten(1), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", [(7,), (3, 40)], ids=["vector", "few rows"])
def test_what_is_not_rotated_is_adams(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(1)
    p = torch.randn(shape, dtype=torch.float64, generator=generator)
    q = p.clone()
    gradients = [torch.randn(shape, dtype=torch.float64, generator=generator) for _ in range(5)]
    descend(p, gradients, Soap([p], 0.01, (0.9, 0.99)))
    descend(q, gradients[1:], torch.optim.Adam([q], 0.01, (0.9, 0.99), eps=1e-10))
    torch.testing.assert_close(p, q)


def test_a_long_side_is_left_as_it_is() -> None:
    p = torch.zeros(16, LARGEST + 1)
    optimizer = Soap([p])
    descend(p, [torch.randn(p.shape) for _ in range(3)], optimizer)
    state = optimizer.state[p]
    assert state["left"].shape == (16, 16) and "right" not in state
    assert p.isfinite().all() and p.abs().max() > 0


@pytest.mark.parametrize(("noise", "share"), [(0.0, 0.01), (0.3, 0.6)], ids=["exact", "noisy"])
def test_it_ends_lower_than_adam_in_a_turned_valley(noise: float, share: float) -> None:
    """A sum of squares whose axes are turned and differ in weight: what the rotation is for."""
    generator = torch.Generator().manual_seed(2)
    left, right = (
        torch.linalg.qr(torch.randn(32, 32, dtype=torch.float64, generator=generator))[0]
        for _ in range(2)
    )
    weights = torch.outer(*(torch.logspace(0, n, 32, dtype=torch.float64) for n in (-3, -1)))
    start = torch.randn(32, 32, dtype=torch.float64, generator=generator)
    draws = noise * torch.randn(300, 32, 32, dtype=torch.float64, generator=generator)
    found = {}
    for make in (Soap, torch.optim.Adam):
        p = start.clone()
        optimizer = make([p], lr=0.05, betas=(0.9, 0.95))
        for n, draw in enumerate(draws):
            optimizer.param_groups[0]["lr"] = 0.05 * (1 - n / len(draws))
            turned = 2 * weights * (left.T @ p @ right) + weights.sqrt() * draw
            p.grad = left @ turned @ right.T
            optimizer.step()
        found[make] = (weights * (left.T @ p @ right).square()).sum().item()
    assert found[Soap] < share * found[torch.optim.Adam]


@pytest.mark.parametrize(
    "wrong", [{"lr": -1.0}, {"betas": (0.9, 1.0)}, {"decay": 1.0}, {"every": 0}, {"eps": 0.0}]
)
def test_values_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="SOAP takes"):
        Soap([torch.zeros(2)], **wrong)


def test_a_closure_is_evaluated() -> None:
    p = torch.ones(2, requires_grad=True)

    def closure() -> Tensor:
        loss = p.square().sum()
        loss.backward()
        return loss

    assert Soap([p]).step(closure) == 2


@pytest.mark.long
def test_a_run_with_it_goes_on_to_the_same_bits_and_with_no_other(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos")
    soap = ["--model.optimizer=soap"]
    assert run(photos, tmp_path / "whole", *soap)[0] == 6
    assert run(photos, tmp_path / "halves", *soap, "--checkpoints.stop_after=0")[0] == 1
    with pytest.raises(ValueError, match=r"go on with --model\.optimizer soap"):
        run(photos, tmp_path / "halves")
    assert run(photos, tmp_path / "halves", *soap, "--checkpoints.stop_after=null")[0] == 6
    assert_same_state(
        checkpoint(tmp_path / "whole" / "last.ckpt"), checkpoint(tmp_path / "halves" / "last.ckpt")
    )
