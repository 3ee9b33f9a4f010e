"""Checkpoints of a training run load in the official code: by key and shape, and to the same
pictures.

The classes here are the official module tree, written from its definition: names, layers, and the
plain computation.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diinn_fast import DIINN
from diinn_fast.inference import load_weights
from diinn_fast.training.checkpoints import AtomicCheckpointIO
from diinn_fast.training.module import SRModule
from tests.helpers.threads import one_thread
from tests.helpers.train_small import checkpoint, make_photos, run


class DenseConv(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(channels, 64, 3, padding=1), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((x, self.conv(x)), 1)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.Sequential(*(DenseConv(64 + 64 * c) for c in range(8)))
        self.LFF = nn.Conv2d(64 + 64 * 8, 64, 1)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.LFF(self.convs(x)) + x
        return result


class RDN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.SFENet1 = nn.Conv2d(3, 64, 3, padding=1)
        self.SFENet2 = nn.Conv2d(64, 64, 3, padding=1)
        self.RDBs = nn.ModuleList(Block() for _ in range(16))
        self.GFF = nn.Sequential(nn.Conv2d(16 * 64, 64, 1), nn.Conv2d(64, 64, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        shallow = self.SFENet1(x)
        x = self.SFENet2(shallow)
        outputs = []
        for block in self.RDBs:
            x = block(x)
            outputs.append(x)
        result: Tensor = self.GFF(torch.cat(outputs, 1)) + shallow
        return result


class Sine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x)


class ImplicitDecoder(nn.Module):
    def __init__(self, mode: int, init_q: bool) -> None:
        super().__init__()
        self.mode = mode
        self.init_q = init_q
        if init_q:
            self.first_layer = nn.Sequential(nn.Conv2d(3, 576, 1), Sine())
        self.K, self.Q = nn.ModuleList(), nn.ModuleList()
        for i in range(4):
            inputs = 576 if i == 0 else (256 if mode == 1 else 256 + 576)
            self.K.append(nn.Sequential(nn.Conv2d(inputs, 256, 1), nn.ReLU()))
            self.Q.append(
                nn.Sequential(nn.Conv2d(256 if i else (576 if init_q else 3), 256, 1), Sine())
            )
        if mode == 4:
            self.last_layer = nn.Conv2d(256, 3, 3, padding=1, padding_mode="reflect")
        else:
            self.last_layer = nn.Conv2d(256, 3, 1)

    def forward(self, features: Tensor, size: Any) -> Tensor:
        h, w = features.shape[-2:]
        content = F.interpolate(
            F.unfold(features, 3, padding=1).unflatten(2, (h, w)), size, mode="nearest-exact"
        )
        position = self.position(h, w, size).expand(len(features), -1, -1, -1)
        if self.init_q:
            position = self.first_layer(position)
            content = content * position
        k = self.K[0](content)
        q = k * self.Q[0](position)
        for i in range(1, 4):
            k = self.K[i](
                k if self.mode == 1 else torch.cat([k if self.mode == 2 else q, content], 1)
            )
            q = k * self.Q[i](q)
        result: Tensor = self.last_layer(q)
        return result

    @staticmethod
    def position(h: int, w: int, size: Any) -> Tensor:
        def axis(n_in: Any, n_out: Any) -> Any:
            lr = (2 * torch.arange(n_in) + 1) / n_in - 1
            hr = (2 * torch.arange(n_out) + 1) / n_out - 1
            return (hr - F.interpolate(lr[None, None], n_out, mode="nearest-exact")[0, 0]) * n_in

        dy, dx = torch.meshgrid(axis(h, size[0]), axis(w, size[1]), indexing="ij")
        return torch.stack([dy, dx, torch.full(size, h * w / (size[0] * size[1]))])[None]


class Official(nn.Module):
    """The official training module: network and normalisation."""

    def __init__(self, arch: str, mode: int, init_q: bool, encoder: Any, **_: Any) -> None:
        super().__init__()
        assert arch == "diinn"
        self.net = nn.Module()
        self.net.encoder = RDN() if encoder == "rdn" else DIINN(encoder=encoder).encoder
        self.net.decoder = ImplicitDecoder(mode, init_q)
        self.register_buffer("sub", torch.full((1, 1, 1, 1), 0.5))
        self.register_buffer("div", torch.full((1, 1, 1, 1), 0.5))

    @classmethod
    def load_from_checkpoint(cls, path: Path) -> Any:
        content = torch.load(path, weights_only=True)
        module = cls(**content["hyper_parameters"])
        module.load_state_dict(content["state_dict"])  # strict
        return module

    def forward(self, lr: tuple[int, int], size: Any) -> Tensor:
        sr = self.net.decoder(self.net.encoder((lr - self.sub) / self.div), size)
        result: Tensor = (sr * self.div + self.sub).clamp(0, 1)
        return result


@pytest.fixture(scope="module", autouse=True)
def threads() -> Iterator[None]:
    with one_thread():
        yield


@torch.no_grad()
def assert_same_pictures(path: Path) -> None:
    lr = torch.rand(1, 3, 9, 10)
    size = (22, 31)
    official = Official.load_from_checkpoint(path)(lr, size)
    for model in (DIINN.from_checkpoint(path), load_weights(str(path))):
        ours = (model((lr - 0.5) / 0.5, size) * 0.5 + 0.5).clamp(0, 1)
        torch.testing.assert_close(ours, official, rtol=1e-4, atol=1e-5)
    assert official.std() > 1e-3


@pytest.mark.long
def test_a_trained_checkpoint_is_official(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos")
    run(photos, tmp_path, "--trainer.max_steps=2", "--model.lr=1e-3")
    assert_same_pictures(tmp_path / "last.ckpt")
    hyper = checkpoint(tmp_path / "last.ckpt")["hyper_parameters"]
    assert (hyper["arch"], hyper["mode"], hyper["init_q"]) == ("diinn", 3, False)
    state = checkpoint(tmp_path / "last.ckpt")["state_dict"]  # the averaged weights come first
    loaded = DIINN.from_checkpoint(tmp_path / "last.ckpt").state_dict()
    assert all(torch.equal(value, state[f"net.{name}"]) for name, value in loaded.items())


@pytest.mark.long
@pytest.mark.parametrize(("mode", "init_q"), [(3, False), (1, True), (4, False)])
def test_the_papers_models_are_official(mode: int, init_q: bool, tmp_path: Path) -> None:
    trainer = L.Trainer(
        accelerator="cpu", logger=False, plugins=[AtomicCheckpointIO()], default_root_dir=tmp_path
    )
    trainer.strategy.connect(SRModule(mode=mode, init_q=init_q))
    trainer.save_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    assert_same_pictures(tmp_path / "last.ckpt")
