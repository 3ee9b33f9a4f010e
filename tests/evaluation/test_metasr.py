"""Meta-SR against the authors' order of work: predict every query's weights, then multiply; and its
checkpoints.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from diinn_fast.baselines import LIIF, MetaSR, project
from diinn_fast.errors import CheckpointError
from tests.helpers.known_models import Channels


def centres(n: int) -> Tensor:
    return -1 + (2 * torch.arange(n, dtype=torch.float64) + 1) / n


def grid(height: int, width: int) -> Tensor:
    """Pixel centres ``[H, W, (y, x)]`` of an image that spans [-1, 1]."""
    return torch.stack(torch.meshgrid(centres(height), centres(width), indexing="ij"), dim=-1)


def literal(model: MetaSR, features: Tensor, size: tuple[int, int]) -> Tensor:
    """By coordinates and grid_sample: upper left corners of query pixels and of LR pixels, on [-1,
    1].
    """
    batch, channels, h, w = features.shape
    height, width = size
    corners = grid(height, width) - torch.tensor([1 / height, 1 / width], dtype=torch.float64)
    lr_corners = (
        (grid(h, w) - torch.tensor([1 / h, 1 / w], dtype=torch.float64))
        .permute(2, 0, 1)
        .expand(batch, -1, -1, -1)
    )
    where = (corners + 1e-9).clamp(-1 + 1e-9, 1 - 1e-9).flip(-1).expand(batch, -1, -1, -1)
    unfolded = F.unfold(features, 3, padding=1).view(batch, channels * 9, h, w)
    x = F.grid_sample(unfolded, where, mode="nearest", align_corners=False).movedim(1, -1)
    lr_corner = F.grid_sample(lr_corners, where, mode="nearest", align_corners=False).movedim(1, -1)
    relative = (corners - lr_corner) * torch.tensor([h / 2, w / 2])
    inputs = torch.cat([relative, torch.full_like(relative[..., :1], h / height)], dim=-1)
    weights = model.imnet(inputs).view(batch, height, width, channels * 9, 3)
    return torch.einsum("byxf,byxfc->bcyx", x, weights)


SIZES = [(8, 10), (12, 15), (11, 7), (9, 23), (4, 5), (1, 1), (2, 31), (3, 5)]


@pytest.mark.parametrize("size", SIZES)
def test_equals_the_formulation_by_coordinates(size: tuple[int, int]) -> None:
    model = MetaSR(Channels()).double()
    features = torch.randn(2, 6, 4, 5, dtype=torch.float64)
    with torch.no_grad():
        want = literal(model, features, size)
        for bsize in (None, 13):
            torch.testing.assert_close(
                model.decode(features, size, bsize), want, rtol=1e-10, atol=1e-10
            )


@pytest.mark.parametrize("size", [(12, 15), (11, 7), (9, 23)])
def test_strips_make_no_difference(monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]) -> None:
    model = MetaSR(Channels()).double()
    features = torch.randn(1, 6, 9, 5, dtype=torch.float64)
    with torch.inference_mode():
        whole = model.decode(features, size)
        monkeypatch.setattr(project, "STRIP_BYTES", 1)
        torch.testing.assert_close(model.decode(features, size), whole, rtol=1e-12, atol=1e-12)


def test_sampled_pixels_are_those_of_decode() -> None:
    model = MetaSR(Channels()).double()
    features = torch.randn(2, 6, 4, 5, dtype=torch.float64)
    yx = torch.stack([torch.randint(0, 9, (2, 40)), torch.randint(0, 14, (2, 40))], dim=-1)
    whole = model.decode(features, (9, 14))
    want = torch.stack([whole[n, :, yx[n, :, 0], yx[n, :, 1]].t() for n in range(2)])
    torch.testing.assert_close(
        model.sample_pixels(features, yx, (9, 14)), want, rtol=1e-12, atol=1e-12
    )
    with pytest.raises(ValueError, match="int64"):
        model.sample_pixels(features, yx.double(), (9, 14))


def test_gradients_are_those_of_the_formulation() -> None:
    model = MetaSR(Channels()).double()
    features = torch.randn(1, 6, 4, 5, dtype=torch.float64, requires_grad=True)
    inputs = [features, *model.imnet.parameters()]
    ours = torch.autograd.grad(model.decode(features, (9, 11)).square().sum(), inputs)
    want = torch.autograd.grad(literal(model, features, (9, 11)).square().sum(), inputs)
    for a, b in zip(ours, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_float32_and_the_published_size() -> None:
    model = MetaSR("edsr-baseline")
    assert [list(p.shape) for p in model.imnet.parameters()] == [
        [256, 3],
        [256],
        [1728, 256],
        [1728],
    ]
    x = torch.rand(1, 3, 6, 7) * 2 - 1
    with torch.no_grad():
        want = MetaSR.decode(model.double(), model.encoder(x.double()), (13, 15))
        got = model.float()(x, (13, 15))
    torch.testing.assert_close(got.double(), want, rtol=0, atol=1e-5)


def test_checkpoint_round_trip(tmp_path: Path) -> None:
    model = MetaSR("edsr-baseline")
    published = {"model": {"name": "metasr", "args": {}, "sd": model.state_dict()}}
    lightning = {
        "state_dict": {f"net.{k}": v for k, v in model.state_dict().items()},
        "hyper_parameters": {},
    }
    for content in (published, lightning, model.state_dict()):
        torch.save(content, tmp_path / "metasr.pth")
        loaded = MetaSR.from_checkpoint(tmp_path / "metasr.pth")
        assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in model.state_dict().items())


def test_unfit_checkpoints_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "liif.pth"
    torch.save({"model": {"sd": LIIF("edsr-baseline").state_dict()}}, path)
    with pytest.raises(
        CheckpointError, match=r"does not fit: 'imnet.layers.0.weight' is \[256, 580\]"
    ):
        MetaSR.from_checkpoint(path)
    torch.save({"decoder.K.0.0.weight": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="not a MetaSR model"):
        MetaSR.from_checkpoint(path)
