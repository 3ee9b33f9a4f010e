"""The adapters of docs/adapters.md, run as they are printed there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def printed() -> dict[str, Any]:
    """Names that the document's Python blocks define."""
    text = (ROOT / "docs" / "adapters.md").read_text()
    names: dict[str, Any] = {"__name__": "adapters"}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(block, names)
    return names


def test_the_liif_adapter_takes_a_size_per_image(printed: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = printed["DIINNQuery"]().eval()
    sizes = [(11, 13), (20, 9)]
    pictures = torch.rand(2, 3, 5, 6) * 2 - 1
    yx = torch.tensor([[0, 0], [3, 7], [10, 8]])
    coord = torch.stack([(2 * yx + 1) / torch.tensor(size) - 1 for size in sizes])
    cell = torch.stack([(2 / torch.tensor(size)).expand(3, 2) for size in sizes])
    with torch.no_grad():
        found = model(pictures, coord, cell)
        for n, size in enumerate(sizes):
            whole = model.net(pictures[n : n + 1], size)[0]
            assert torch.allclose(found[n], whole[:, yx[:, 0], yx[:, 1]].T, atol=1e-5)


def test_the_liif_adapter_trains_all_weights(printed: dict[str, Any]) -> None:
    model = printed["DIINNQuery"]()
    coord = torch.rand(1, 4, 2) * 2 - 1
    model(torch.rand(1, 3, 4, 5), coord, torch.full((1, 4, 2), 0.2)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_clit_adapter_takes_a_size_and_a_batch_size(printed: dict[str, Any]) -> None:
    model = printed["DIINNGrid"](encoder="edsr-baseline").eval()
    with torch.no_grad():
        found = model(torch.rand(1, 3, 4, 5), torch.tensor([9, 11]), 30)
    assert found.shape == (1, 3, 9, 11)
