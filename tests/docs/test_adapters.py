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


def grids(batch: int, *sizes: tuple[int, int]) -> list[torch.Tensor]:
    """Pixel centres [batch, H, W, 2] of some grids, (y, x) in [-1, 1]."""
    found = []
    for height, width in sizes:
        rows = (2 * torch.arange(height) + 1) / height - 1
        columns = (2 * torch.arange(width) + 1) / width - 1
        grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1)
        found.append(grid.expand(batch, -1, -1, -1))
    return found


def test_the_clit_adapter_decodes_the_last_grid(printed: dict[str, Any]) -> None:
    model = printed["DIINNGrid"](encoder="edsr-baseline").eval()
    pictures = torch.rand(2, 3, 4, 5) * 2 - 1
    coords = grids(2, (6, 7), (11, 13))
    cell = (2 / torch.tensor([11, 13])).expand(2, 2)
    some = coords[-1].flatten(1, 2)[:, [0, 7, 142]]
    with torch.no_grad():
        (sampled,) = model(pictures, coords, some, cell)
        whole = model.chop_forward(pictures, coords, cell, 30)
        expected = model.decoder(model.encoder(pictures), (11, 13))
    # the authors' tests make a picture of it so
    assert torch.equal(whole.view(2, 11, 13, 3).permute(0, 3, 1, 2), expected)
    assert torch.allclose(sampled, whole[:, [0, 7, 142]], atol=1e-5)


def test_the_clit_adapter_trains_all_weights(printed: dict[str, Any]) -> None:
    model = printed["DIINNGrid"](encoder="edsr-baseline")
    coords = grids(1, (8, 10))
    cell = (2 / torch.tensor([8, 10])).expand(1, 2)
    model(torch.rand(1, 3, 4, 5), coords, coords[0].flatten(1, 2)[:, ::3], cell)[
        -1
    ].sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
