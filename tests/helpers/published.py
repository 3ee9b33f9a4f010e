"""The published model as a module that calls each of its layers, one after the other, at HR size.

What the literal formulas of `diinn_fast.reference` are for values, this is for edits: the same
names of modules and parameters as the authors' class, so that whatever is done to a layer of one
can be done to the other. Sizes are free, to keep tests small.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diinn_fast import DIINN, ImplicitDecoder, reference
from diinn_fast.encoders import RDN

WIDTH = 32
"""Of the decoder's layers in tests; the published one's is 256."""


class Sine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x)


class PublishedStep(nn.Module):
    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(channels, growth, 3, padding=1), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((x, self.conv(x)), dim=1)


class PublishedBlock(nn.Module):
    def __init__(self, channels: int, growth: int, convs: int) -> None:
        super().__init__()
        steps = (PublishedStep(channels + n * growth, growth) for n in range(convs))
        self.convs = nn.Sequential(*steps)
        self.LFF = nn.Conv2d(channels + convs * growth, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.LFF(self.convs(x)) + x
        return result


class PublishedRDN(nn.Module):
    def __init__(self, channels: int, growth: int, blocks: int, convs: int) -> None:
        super().__init__()
        self.SFENet1 = nn.Conv2d(3, channels, 3, padding=1)
        self.SFENet2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.RDBs = nn.ModuleList(PublishedBlock(channels, growth, convs) for _ in range(blocks))
        self.GFF = nn.Sequential(
            nn.Conv2d(blocks * channels, channels, 1),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        shallow = self.SFENet1(x)
        x = self.SFENet2(shallow)
        outputs = []
        for block in self.RDBs:
            x = block(x)
            outputs.append(x)
        result: Tensor = self.GFF(torch.cat(outputs, dim=1)) + shallow
        return result


class PublishedDecoder(nn.Module):
    def __init__(self, channels: int, width: int, mode: int, init_q: bool) -> None:
        super().__init__()
        self.mode = mode
        self.init_q = init_q
        content = 9 * channels
        position = 3
        if init_q:
            self.first_layer = nn.Sequential(nn.Conv2d(3, content, 1), Sine())
            position = content
        self.K = nn.ModuleList()
        self.Q = nn.ModuleList()
        for n in range(4):
            inputs = content if n == 0 else width if mode == 1 else width + content
            self.K.append(nn.Sequential(nn.Conv2d(inputs, width, 1), nn.ReLU()))
            self.Q.append(nn.Sequential(nn.Conv2d(width if n else position, width, 1), Sine()))
        if mode == 4:
            self.last_layer = nn.Conv2d(width, 3, 3, padding=1, padding_mode="reflect")
        else:
            self.last_layer = nn.Conv2d(width, 3, 1)

    def forward(self, features: Tensor, size: Sequence[int], bsize: int | None = None) -> Tensor:
        """``bsize`` is taken and ignored: it changes no value."""
        batch, channels, h, w = features.shape
        rows = torch.arange(size[0])
        columns = torch.arange(size[1])
        p, i, j = reference.position((h, w), size, rows, columns, features.dtype)
        p = p.to(features.device).expand(batch, -1, -1, -1)
        content = F.unfold(features, 3, padding=1).view(batch, 9 * channels, h, w)
        x = content.index_select(2, i.to(features.device)).index_select(3, j.to(features.device))
        if self.init_q:
            p = self.first_layer(p)
            x = x * p
        k = self.K[0](x)
        q = k * self.Q[0](p)
        for n in range(1, len(self.K)):
            recurrent = k if self.mode in (1, 2) else q
            k = self.K[n](recurrent if self.mode == 1 else torch.cat([recurrent, x], dim=1))
            q = k * self.Q[n](q)
        result: Tensor = self.last_layer(q)
        return result


class Published(nn.Module):
    """Encoder and decoder; by default so small that a test takes milliseconds."""

    def __init__(
        self,
        mode: int = 3,
        init_q: bool = False,
        rdn: tuple[int, int, int, int] = (8, 4, 2, 2),
        width: int = WIDTH,
    ) -> None:
        super().__init__()
        self.encoder = PublishedRDN(*rdn)
        self.decoder = PublishedDecoder(rdn[0], width, mode, init_q)

    def forward(self, x: Tensor, size: Sequence[int], bsize: int | None = None) -> Tensor:
        result: Tensor = self.decoder(self.encoder(x), size, bsize)
        return result


def pair(mode: int = 3, init_q: bool = False) -> tuple[Published, DIINN]:
    """The published model and ours, with the same weights, all of which matter in the output."""
    published = Published(mode, init_q)
    with torch.no_grad():
        for parameter in published.parameters():
            parameter.mul_(2.0)
    ours = DIINN(mode, init_q, encoder=RDN(channels=8, growth=4, blocks=2, convs=2))
    ours.decoder = ImplicitDecoder(8, [WIDTH] * 4, mode, init_q)
    ours.load_state_dict(published.state_dict())
    return published, ours
