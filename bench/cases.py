"""What is measured: a case is one piece of work of stated sizes, the same for every peer, and its
FLOPs.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import torch

from diinn_fast.encoders import make_encoder
from diinn_fast.encoders.base import convolution_macs
from diinn_fast.geometry import size_for_scale

# Multiply-adds of the decoder, mode 3: in the least arithmetic known (content products once per LR
# pixel), as the formulation writes it (everything per HR pixel). Of LIIF's decoder, as written, and
# with its first layer done once per LR pixel; of Meta-SR's, with its last layer done once per LR
# pixel.
PROJECTED_PER_HR = 394_752
PROJECTED_PER_LR = 589_824
WRITTEN_PER_HR = 984_576
LIIF_PER_HR = 1_383_424
LIIF_PROJECTED_PER_HR = 791_552
LIIF_PROJECTED_PER_LR = 147_456
METASR_PER_HR = 1_536
METASR_PER_LR = 444_096
OFFICIAL_BYTES = {"decode": 12_288, "model": 12_288, "training": 40_960, "photo": 12_288}
"""Memory of the official formulation per query: two 2.3 KB and one 3.3 KB tensors and the layers'
results live at once; training keeps every layer's inputs."""


@dataclass(frozen=True)
class Case:
    """``kind``: decode (features to RGB), model (LR image to RGB), photo (file to file), training
    (decoder forward and backward; with an encoder, of the whole model).
    """

    kind: str
    lr: tuple[int, int]
    scale: float
    batch: int = 1
    encoder: str = ""
    device: str = "cpu"
    dtype: str = "float32"
    mode: int = 3

    @property
    def size(self) -> tuple[int, int]:
        """HR (height, width)."""
        return size_for_scale(self.lr, self.scale)

    @property
    def queries(self) -> int:
        """Queries of the batch."""
        return self.batch * self.size[0] * self.size[1]

    @property
    def lr_pixels(self) -> int:
        """LR pixels of the batch."""
        return self.batch * self.lr[0] * self.lr[1]

    @property
    def name(self) -> str:
        """Short and unique: ``decode-48x48-x4``."""
        batch = f"batch{self.batch}" if self.kind == "training" and self.encoder else ""
        parts = [self.kind, self.encoder, f"{self.lr[0]}x{self.lr[1]}", f"x{self.scale:g}", batch]
        return "-".join(p for p in parts if p)

    @property
    def title(self) -> str:
        """The case in a table."""
        h, w = self.lr
        height, width = self.size
        what = "decode" if self.kind == "decode" else "decoder"
        if self.encoder:
            what = f"{self.encoder} and {what}"
        if self.kind == "photo":
            what = f"photograph from file to file, {self.encoder}"
        if self.kind == "training":
            what += ", forward and backward"
        batch = f", batch {self.batch}" if self.batch > 1 else ""
        return f"{what}: {h}x{w} to {height}x{width} (x{self.scale:g}{batch})"

    def flops(self, peer: str) -> float:
        """Useful floating point operations: for all forms of one function those of the least
        arithmetic.
        """
        if peer.startswith("liif"):
            macs = self.queries * LIIF_PROJECTED_PER_HR + self.lr_pixels * LIIF_PROJECTED_PER_LR
        elif peer == "convnet":
            macs = self.lr_pixels * tail_macs(int(self.scale))
        elif peer == "metasr":
            macs = self.queries * METASR_PER_HR + self.lr_pixels * METASR_PER_LR
        else:
            macs = self.queries * PROJECTED_PER_HR + self.lr_pixels * PROJECTED_PER_LR
        return self._with_rest(macs)

    def performed_flops(self, peer: str) -> float:
        """Operations that a peer really does: what decides how long it will take."""
        if peer == "liif-unfolded":
            return self._with_rest(self.queries * LIIF_PER_HR)
        return (
            self._with_rest(self.queries * WRITTEN_PER_HR)
            if peer.startswith("official")
            else self.flops(peer)
        )

    def _with_rest(self, macs: float) -> float:
        macs += self.lr_pixels * encoder_macs(self.encoder)
        return 2.0 * macs * (3 if self.kind == "training" else 1)

    def official_bytes(self) -> int:
        """About how much memory the official formulation takes."""
        return self.queries * OFFICIAL_BYTES[self.kind]

    def describe(self) -> dict[str, Any]:
        """The case as plain values: ``Case(**...)`` rebuilds it, in another process too."""
        return asdict(self)


def tail_steps(scale: int) -> list[int]:
    """Factors of EDSR's pixel shuffles for a scale."""
    return [2, 2] if scale == 4 else [scale]


def tail_macs(scale: int, channels: int = 64) -> int:
    """Multiply-adds per LR pixel of EDSR's upsampling to a scale."""
    total = 0
    area = 1
    for step in tail_steps(scale):
        total += area * 9 * channels * channels * step**2
        area *= step**2
    return total + area * 9 * channels * 3


@cache
def encoder_macs(name: str) -> int:
    """Multiply-adds per LR pixel of an encoder by name; of none, 0."""
    if not name:
        return 0
    with torch.device("meta"):
        return convolution_macs(make_encoder(name))


def from_description(values: dict[str, Any]) -> Case:
    """The case of a record."""
    return Case(**{**values, "lr": tuple(values["lr"])})
