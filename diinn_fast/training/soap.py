"""SOAP: Adam in the eigenbasis of Shampoo's covariances (Vyas et al., 2024, arXiv 2409.11321)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

SMALLEST = 16
LARGEST = 1024
"""Lengths of the sides that are rotated: shorter ones gain nothing, longer ones cost too much."""


class Soap(torch.optim.Optimizer):
    """Adam whose second moment is that of the rotated gradient.

    A weight is a matrix G ``[outputs, inputs]`` (a convolution's inputs include its taps), with
    ``L = mean(G G^T)``, ``R = mean(G^T G)`` (moving averages) and their eigenvectors U and V::

        m = mean(G)                      v = mean((U^T G V)^2)
        step = lr * U [U^T m V / (sqrt(v) + eps)] V^T

    with Adam's corrections for the averages' first steps. U and V are taken up every ``every``
    steps by one power iteration and a QR decomposition. A side longer than ``LARGEST`` is not
    rotated, nor is a matrix with a side shorter than ``SMALLEST``: like vectors, it is Adam's. The
    first step only gathers L and R.

    Args:
        params: as of torch's optimisers.
        lr: learning rate.
        betas: decay of m and v.
        decay: of L and R.
        every: steps between two looks for eigenvectors.
        eps: added to the root of v.

    Raises ValueError for values out of range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 3e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        decay: float = 0.98,
        every: int = 20,
        eps: float = 1e-10,
    ) -> None:
        if not (lr >= 0 and all(0 <= b < 1 for b in (*betas, decay)) and every >= 1 and eps > 0):
            raise ValueError(
                "SOAP takes lr >= 0, betas and decay in [0, 1), every >= 1 and eps > 0, not "
                f"{lr=}, {betas=}, {decay=}, {every=}, {eps=}"
            )
        super().__init__(
            params, {"lr": lr, "betas": betas, "decay": decay, "every": every, "eps": eps}
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of all parameters that have a gradient; returns what ``closure`` does."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, p.grad, group, self.state[p])
        return loss

    def _update(
        self, p: Tensor, gradient: Tensor, group: dict[str, Any], state: dict[str, Any]
    ) -> None:
        gradient = gradient.flatten(1) if p.dim() > 1 else gradient[None]
        if not state:
            _begin(state, gradient)
            return
        state["step"] += 1
        n, (first, second) = int(state["step"]), group["betas"]
        left, right = state.get("left"), state.get("right")
        mean, square = state["mean"], state["square"]
        mean.lerp_(gradient, 1 - first)
        square.lerp_(_rotate(gradient, left, right).square(), 1 - second)
        update = _rotate(mean, left, right) / (1 - first**n)
        update /= (square / (1 - second**n)).sqrt_().add_(group["eps"])
        p.sub_(_rotate_back(update, left, right).view_as(p), alpha=group["lr"])
        if left is not None:
            state["rows"].lerp_(gradient @ gradient.T, 1 - group["decay"])
        if right is not None:
            state["columns"].lerp_(gradient.T @ gradient, 1 - group["decay"])
        if n % group["every"] == 0:
            _turn(state)


def _begin(state: dict[str, Any], gradient: Tensor) -> None:
    state["step"] = torch.zeros(())
    state |= {"mean": torch.zeros_like(gradient), "square": torch.zeros_like(gradient)}
    if min(gradient.shape) < SMALLEST:
        return
    for covariance, basis, side in (("rows", "left", gradient), ("columns", "right", gradient.T)):
        if len(side) <= LARGEST:
            first = state[covariance] = side @ side.T
            state[basis] = torch.linalg.eigh(first.float())[1].flip(1).to(first.dtype).contiguous()


def _turn(state: dict[str, Any]) -> None:
    """Turn the bases towards today's covariances; largest eigenvalues first, v along with them."""
    for dim, (covariance, basis) in enumerate((("rows", "left"), ("columns", "right"))):
        if basis not in state:
            continue
        turned = state[covariance] @ state[basis]
        order = (state[basis] * turned).sum(0).argsort(descending=True)
        state["square"] = state["square"].index_select(dim, order)
        state[basis] = torch.linalg.qr(turned[:, order])[0]


def _rotate(x: Tensor, left: Tensor | None, right: Tensor | None) -> Tensor:
    """U^T x V."""
    x = x if left is None else left.T @ x
    return x if right is None else x @ right


def _rotate_back(x: Tensor, left: Tensor | None, right: Tensor | None) -> Tensor:
    """U x V^T."""
    x = x if left is None else left @ x
    return x if right is None else x @ right.T
