"""DnCNN, the baseline for compressed and noisy pictures: its arithmetic, and its files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diinn_fast import DIINN
from diinn_fast.baselines import DnCNN, bicubic
from diinn_fast.errors import CheckpointError
from diinn_fast.evaluation.candidates import describe, load_candidate
from diinn_fast.loading import load_model
from diinn_fast.metrics import luma

CPU = torch.device("cpu")


@pytest.fixture
def picture() -> Tensor:
    return torch.rand(2, 3, 9, 7, dtype=torch.float64)


def literal_noise(model: DnCNN, x: Tensor) -> Tensor:
    """Convolution by convolution, from the tensors by name."""
    state = model.state_dict()
    names = sorted(int(name.split(".")[1]) for name in state if name.endswith("weight"))
    for n in names:
        x = F.conv2d(x, state[f"model.{n}.weight"], state[f"model.{n}.bias"], padding=1)
        if n != names[-1]:
            x = x.clamp(min=0)
    return x


def to_ycbcr(picture: Tensor) -> Tensor:
    """ITU-R BT.601 of [0, 1] colours, over 255."""
    matrix = torch.tensor(
        [[65.481, 128.553, 24.966], [-37.797, -74.203, 112.0], [112.0, -93.786, -18.214]],
        dtype=picture.dtype,
    )
    offset = torch.tensor([16.0, 128.0, 128.0], dtype=picture.dtype)
    return (torch.einsum("kc,bchw->bkhw", matrix, picture) + offset[:, None, None]) / 255


@torch.no_grad()
def test_one_of_three_channels_subtracts_its_noise(picture: Tensor) -> None:
    model = DnCNN(channels=3, layers=4).double()
    want = picture - literal_noise(model, picture)
    torch.testing.assert_close(model.clean(picture), want)


@torch.no_grad()
def test_one_of_one_channel_changes_luma_and_leaves_chroma(picture: Tensor) -> None:
    model = DnCNN(channels=1, layers=5).double()
    before = to_ycbcr(picture)
    after = to_ycbcr(model.clean(picture))
    noise = literal_noise(model, luma(picture))
    torch.testing.assert_close(before[:, :1] - after[:, :1], noise, rtol=0, atol=1e-4)
    torch.testing.assert_close(before[:, 1:], after[:, 1:], rtol=0, atol=1e-4)
    assert noise.abs().max() > 1e-3


@torch.no_grad()
def test_its_output_is_bicubic_of_the_cleaned_picture(picture: Tensor) -> None:
    model = DnCNN(layers=3).double()
    got = model(picture * 2 - 1, (20, 15)) * 0.5 + 0.5
    torch.testing.assert_close(got, bicubic(model.clean(picture), (20, 15)))


@torch.no_grad()
@pytest.mark.parametrize("channels", [1, 3])
def test_its_files_are_recognised(tmp_path: Path, channels: int) -> None:
    model = DnCNN(channels, layers=6)
    torch.save(model.state_dict(), tmp_path / "dncnn3.pth")
    loaded = load_model(tmp_path / "dncnn3.pth")
    assert isinstance(loaded, DnCNN)
    candidate = load_candidate(str(tmp_path / "dncnn3.pth"), CPU)
    assert candidate.model is not None and describe(candidate.model) == "DnCNN"
    lr = torch.rand(1, 3, 8, 6)
    torch.testing.assert_close(candidate.upscale(lr, (16, 12)), bicubic(model.clean(lr), (16, 12)))


def test_another_model_with_a_tensor_of_that_name_is_not_taken_for_it(tmp_path: Path) -> None:
    class Encoder(nn.Module):
        out_dim = 64

        def __init__(self) -> None:
            super().__init__()
            self.model = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1))

        def forward(self, x: Tensor) -> Tensor:
            features: Tensor = self.model(x)
            return features

    torch.save(DIINN(encoder=Encoder()).state_dict(), tmp_path / "mine.pth")
    with pytest.raises(CheckpointError, match=r"encoder that is none of .*DIINN\(encoder="):
        load_model(tmp_path / "mine.pth")


def test_a_file_with_batch_normalisation_is_refused(tmp_path: Path) -> None:
    state = DnCNN(layers=4).state_dict()
    state["model.3.running_mean"] = torch.zeros(64)
    torch.save(state, tmp_path / "bn.pth")
    with pytest.raises(CheckpointError, match=r"'model\.3\.running_mean' is not part"):
        DnCNN.from_checkpoint(tmp_path / "bn.pth")
