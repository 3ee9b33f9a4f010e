"""LIIF against an independent formulation by coordinates and grid_sample, and its checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from diinn_fast.baselines import LIIF, project
from diinn_fast.baselines.liif import surrounding
from diinn_fast.errors import CheckpointError
from tests.helpers.known_models import Channels


def centres(n: int) -> Tensor:
    """Pixel centres of an axis of n pixels that spans [-1, 1]."""
    return -1 + (2 * torch.arange(n, dtype=torch.float64) + 1) / n


def literal(model: LIIF, features: Tensor, size: tuple[int, int]) -> Tensor:
    """The paper's formulation: sample four shifted nearest features and their coordinates, all at
    HR size.
    """
    batch, channels, h, w = features.shape
    height, width = size
    # [H, W, (y, x)].
    grid = torch.stack(torch.meshgrid(centres(height), centres(width), indexing="ij"), dim=-1)
    lr_grid = torch.stack(torch.meshgrid(centres(h), centres(w), indexing="ij")).expand(
        batch, -1, -1, -1
    )
    unfolded = F.unfold(features, 3, padding=1).view(batch, channels * 9, h, w)
    predictions = {}
    areas = {}
    for vy in (-1, 1):
        for vx in (-1, 1):
            shift = torch.tensor([vy / h, vx / w], dtype=torch.float64)
            shifted = (
                (grid + shift + 1e-9).clamp(-1 + 1e-9, 1 - 1e-9).flip(-1).expand(batch, -1, -1, -1)
            )

            def nearest(source: Tensor, where: Tensor = shifted) -> Tensor:
                return F.grid_sample(source, where, mode="nearest", align_corners=False).movedim(
                    1, -1
                )

            relative = (grid - nearest(lr_grid)) * torch.tensor([h, w])
            cell = torch.tensor([2 / height * h, 2 / width * w], dtype=torch.float64).expand_as(
                relative
            )
            predictions[vy, vx] = model.imnet(
                torch.cat([nearest(unfolded), relative, cell], dim=-1)
            )
            areas[vy, vx] = (relative[..., 0] * relative[..., 1]).abs() + 1e-9
    total = torch.stack(list(areas.values())).sum(0)
    rgb = sum(predictions[vy, vx] * (areas[-vy, -vx] / total)[..., None] for vy, vx in predictions)
    assert isinstance(rgb, Tensor)
    return rgb.movedim(-1, 1)


@pytest.mark.parametrize("size", [(8, 10), (12, 15), (11, 7), (9, 23), (4, 5), (1, 1), (2, 31)])
def test_equals_the_formulation_by_coordinates(size: tuple[int, int]) -> None:
    model = LIIF(Channels()).double()
    with torch.no_grad():
        features = torch.rand(2, 6, 4, 5, dtype=torch.float64)
        for bsize in (None, 13):
            ours = model.decode(features, size, bsize)
            torch.testing.assert_close(ours, literal(model, features, size), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("size", [(12, 15), (11, 7), (9, 23)])
def test_strips_make_no_difference(monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]) -> None:
    model = LIIF(Channels()).double()
    features = torch.randn(1, 6, 9, 5, dtype=torch.float64)
    with torch.inference_mode():
        whole = model.decode(features, size)
        monkeypatch.setattr(project, "STRIP_BYTES", 1)
        torch.testing.assert_close(model.decode(features, size), whole, rtol=1e-12, atol=1e-12)


def test_sampled_pixels_are_those_of_decode() -> None:
    model = LIIF(Channels()).double()
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
    model = LIIF(Channels()).double()
    features = torch.randn(1, 6, 4, 5, dtype=torch.float64, requires_grad=True)
    inputs = [features, *model.imnet.parameters()]
    ours = torch.autograd.grad(model.decode(features, (9, 11)).square().sum(), inputs)
    want = torch.autograd.grad(literal(model, features, (9, 11)).square().sum(), inputs)
    for a, b in zip(ours, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_float32_is_as_exact_as_the_formulation() -> None:
    """64 queries and more, in the form that products have in float32 on the CPU."""
    model = LIIF(Channels())
    features = torch.randn(1, 6, 7, 6)
    with torch.no_grad():
        exact = literal(model.double(), features.double(), (20, 24))
        error = (model.float().decode(features, (20, 24)) - exact).abs().max()
    assert error < 2e-6


def test_forward_is_encoder_then_decode_and_differentiable() -> None:
    model = LIIF(Channels())
    x = torch.rand(1, 3, 5, 4)
    out = model(x, (7, 9))
    assert out.shape == (1, 3, 7, 9)
    assert torch.equal(out, model.decode(model.encoder(x), (7, 9)))
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_surrounding_pixels_and_their_offsets() -> None:
    (below, left), (above, right) = surrounding(3, 6, torch.device("cpu"), torch.float64)
    assert below.tolist() == [0, 0, 0, 1, 1, 2]
    assert above.tolist() == [0, 1, 1, 2, 2, 2]
    assert left.tolist() == [-0.5, 0.5, 1.5, 0.5, 1.5, 0.5]
    assert right.tolist() == [-0.5, -1.5, -0.5, -1.5, -0.5, 0.5]


def test_the_published_size_and_names() -> None:
    model = LIIF("edsr-baseline")
    assert [k for k in model.state_dict() if k.endswith("weight") and k.startswith("imnet")] == [
        f"imnet.layers.{n}.weight" for n in (0, 2, 4, 6, 8)
    ]
    macs = 4 * sum(
        p.numel() for name, p in model.imnet.named_parameters() if name.endswith("weight")
    )
    assert macs == 1_383_424


def test_checkpoint_round_trip(tmp_path: Path) -> None:
    model = LIIF("edsr-baseline")
    path = tmp_path / "liif.pth"
    # The published file has unused layers.
    state = model.state_dict() | {"encoder.sub_mean.weight": torch.eye(3)}
    published = {"model": {"name": "liif", "args": {"local_ensemble": True}, "sd": state}}
    lightning = {
        "state_dict": {f"net.{k}": v for k, v in model.state_dict().items()},
        "hyper_parameters": {},
    }
    for content in (published, lightning):
        torch.save(content, path)
        loaded = LIIF.from_checkpoint(path)
        assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in model.state_dict().items())


def test_unfit_checkpoints_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    contents: list[Any] = [{"state_dict": {}}, {"model": {"sd": {}}}, {"model": {"sd": {"a": 1}}}]
    for content in contents:
        torch.save(content, path)
        with pytest.raises(CheckpointError, match="not a state_dict"):
            LIIF.from_checkpoint(path)
    torch.save({"decoder.K.0.0.weight": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="not a LIIF model"):
        LIIF.from_checkpoint(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="cannot be read"):
        LIIF.from_checkpoint(path)
    state = LIIF("edsr-baseline").state_dict()
    del state["imnet.layers.8.bias"]
    torch.save({"model": {"sd": state}}, path)
    with pytest.raises(CheckpointError, match=r"'imnet.layers.8.bias' is missing"):
        LIIF.from_checkpoint(path)
