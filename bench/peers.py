"""Who is measured: ``build(case, peer)`` sets one peer up for one case, for speed and for memory
alike.

Peers: the official formulation (eager, and compiled), plain PyTorch at its best (the package's
    eager backend, and the
same with 1x1 convolutions in channels_last), LIIF, bicubic, and every compiled backend of the
package.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench import photo
from bench.cases import Case
from bench.machine import free_bytes
from diinn_fast import DIINN, ImplicitDecoder, backends, reference
from diinn_fast.baselines import LIIF, MetaSR
from diinn_fast.baselines.liif import surrounding
from diinn_fast.encoders import make_encoder, use_fast_weights
from diinn_fast.geometry import area_ratio, local_offset, nearest_index
from diinn_fast.packing import pack

Call = Callable[[], object]

TITLES = {
    "official": "official formulation",
    "official-compiled": "official formulation, torch.compile",
    "eager": "plain PyTorch, projected (backend eager)",
    "conv": "plain PyTorch, projected, 1x1 conv NHWC",
    "liif": "LIIF (another function)",
    "liif-unfolded": "LIIF, its authors' formulation",
    "metasr": "Meta-SR (another function)",
    "bicubic": "bicubic (another function)",
    "convnet": "EDSR-baseline of this scale alone (another function)",
    "fp32": "diinn_fast (precision fp32)",
    "bf16": "diinn_fast (precision bf16)",
    "int8": "diinn_fast (precision int8)",
}
PLAIN = ("eager", "conv")
"""DIINN in plain PyTorch, as fast as it goes."""

DEFAULT_LIMITS = {"official": 5e11, "liif": 2e11, "eager": 7e11, "conv": 1e12}
"""FLOPs above which a peer is left to ``--full``, so that the default run ends in minutes on two
cores. A training step may have twice as many: there is only one."""


def title(peer: str) -> str:
    """The peer in a table."""
    return TITLES.get(peer, f"diinn_fast (backend {peer})")


def fused(device: str, training: bool = False) -> list[str]:
    """The package's compiled backends that run on this device, for training those with
    gradients.
    """
    rows = {row["backend"]: row for row in backends.table()}
    return [
        name
        for name, row in rows.items()
        if name != "eager"
        and row["available"] == "yes"
        and device in row["devices"].split(", ")
        and not (training and backends.load(name).INTEGERS)
    ]


def names(case: Case, full: bool) -> list[str]:
    """Peers that take part in a case, slowest kind first."""
    found = [
        "official",
        *(["official-compiled"] if full and case.kind != "training" else []),
        "eager",
    ]
    if case.kind == "decode" and case.mode == 3:
        found.append("conv")
    # LIIF keeps every layer's inputs: 20 GiB at batch 16.
    if case.kind != "training" or not case.encoder:
        found.append("liif")
    if case.kind != "training":
        found.append("bicubic")
    return [*found, *fused(case.device, case.kind == "training")]


def left_out(case: Case, peer: str, full: bool) -> str | None:
    """Why a peer is not run on this case, or None."""
    if peer.startswith("official") and case.official_bytes() > (
        limit := free_bytes(case.device) // 2
    ):
        return (
            f"would need {case.official_bytes() / 2**30:.1f} GiB, half of the free memory is "
            f"{limit / 2**30:.1f}"
        )
    most = DEFAULT_LIMITS.get(peer.split("-")[0], float("inf"))
    flops = case.performed_flops(peer)
    if not full and case.device == "cpu" and flops > most * (2 if case.kind == "training" else 1):
        return f"{flops / 1e12:.1f} TFLOP: only with --full"
    return None


def build(case: Case, peer: str) -> Call:
    """A function of no arguments that does the case's work once. All random numbers are the same
    for every peer.
    """
    torch.manual_seed(0)
    kinds = {"decode": _decode, "model": _model, "training": _training, "photo": photo.build}
    work = kinds[case.kind]
    return work(case, peer)


def _to(case: Case, value: Any) -> Any:
    return value.to(case.device, getattr(torch, case.dtype))


def _decode(case: Case, peer: str) -> Call:
    features = _to(case, torch.rand(case.batch, 64, *case.lr) * 2 - 1)
    decode = _decoder(case, peer)
    return torch.inference_mode()(lambda: decode(features))


def _decoder(case: Case, peer: str) -> Callable[[Tensor], Tensor]:
    """Features to RGB."""
    size = case.size
    mode = case.mode
    if peer == "bicubic":
        return lambda features: F.interpolate(features[:, :3], size, mode="bicubic")
    if peer.startswith("liif"):
        liif = _to(case, LIIF(torch.nn.Identity()))
        if peer == "liif-unfolded":
            return lambda features: unfolded_liif(liif, features, size)
        return lambda features: liif.decode(features, size)
    if peer == "metasr":
        metasr = _to(case, MetaSR(torch.nn.Identity()))
        return lambda features: metasr.decode(features, size)
    decoder = _to(case, ImplicitDecoder(64, mode=mode))
    return _form(decoder, peer, size)


def _form(decoder: ImplicitDecoder, peer: str, size: tuple[int, int]) -> Callable[[Tensor], Tensor]:
    """One of the forms of DIINN's decoder, all with the same weights."""
    if peer == "conv":
        return lambda features: decode_by_convolutions(decoder, features, size)
    if not peer.startswith("official"):
        return lambda features: decoder(features, size, backend=peer)
    function = torch.compile(reference.decode) if peer == "official-compiled" else reference.decode
    weights = decoder.state_dict(keep_vars=True)
    return lambda features: function(weights, features, size, decoder.mode)


def _model(case: Case, peer: str) -> Call:
    image = _to(case, torch.rand(case.batch, 3, *case.lr) * 2 - 1)
    if peer == "bicubic":
        return lambda: F.interpolate(image, case.size, mode="bicubic")
    if peer == "liif":
        liif = _to(case, LIIF(case.encoder))
        return torch.inference_mode()(lambda: liif(image, case.size))
    model = _to(case, DIINN(mode=case.mode, encoder=case.encoder))
    if not peer.startswith("official"):
        return torch.inference_mode()(lambda: model(image, case.size, backend=peer))
    decode = _form(model.decoder, peer, case.size)
    return torch.inference_mode()(lambda: decode(model.encoder.plain(image)))


def _training(case: Case, peer: str) -> Call:
    """Forward and backward of the decoder: gradients for the features and all weights. With an
    encoder, of the whole model on LR images: gradients for all weights.
    """
    source = _to(case, torch.rand(case.batch, 3 if case.encoder else 64, *case.lr) * 2 - 1)
    target = _to(case, torch.rand(case.batch, 3, *case.size) * 2 - 1)
    decoder: Any
    decode: Callable[[Tensor], Tensor]
    if peer.startswith("liif"):
        decoder = _to(case, LIIF(torch.nn.Identity()))
        decode = partial(decoder.decode, size=case.size)
        if peer == "liif-unfolded":
            decode = partial(unfolded_liif, decoder, size=case.size, chunk=case.queries)
    else:
        decoder = _to(case, ImplicitDecoder(64, mode=case.mode))
        decode = _form(decoder, peer, case.size)
    inputs = [*decoder.parameters()]
    encode: Callable[[Tensor], Tensor] = torch.nn.Identity()
    if case.encoder:
        encoder = _to(case, make_encoder(case.encoder))
        inputs += encoder.parameters()
        official = peer.startswith("official")
        encode = encoder.plain if official else use_fast_weights(encoder)  # as training does
    else:
        inputs.append(source.requires_grad_())

    def step() -> Sequence[Tensor]:
        return torch.autograd.grad(F.l1_loss(decode(encode(source)), target), inputs)

    return step


def unfolded_liif(
    liif: LIIF, features: Tensor, size: tuple[int, int], chunk: int = 30_000
) -> Tensor:
    """LIIF in its authors' order of work: four times per query all 580 inputs are gathered and
    multiplied.

    Chunks of 30,000 queries as in their evaluation.
    """
    batch = features.shape[0]
    h, w = features.shape[-2:]
    height, width = size
    unfolded = F.unfold(features, 3, padding=1).transpose(1, 2).contiguous()  # [B, h*w, 9C]
    rows = surrounding(*(h, height), features.device, features.dtype)
    columns = surrounding(*(w, width), features.device, features.dtype)
    cell = torch.tensor(
        [2 * h / height, 2 * w / width], dtype=features.dtype, device=features.device
    )
    parts = []
    for query in torch.arange(height * width, device=features.device).split(chunk):
        y = query // width
        x = query % width
        predictions = []
        areas = []
        for i, dy in rows:
            for j, dx in columns:
                position = torch.stack([dy[y], dx[x]], dim=-1)
                inputs = [
                    unfolded[:, i[y] * w + j[x]],
                    position.expand(batch, -1, -1),
                    cell.expand(batch, len(query), 2),
                ]
                predictions.append(liif.imnet(torch.cat(inputs, dim=-1)))
                areas.append(position.prod(dim=-1).abs() + 1e-9)
        total = torch.stack(areas).sum(0)
        weighted = [
            p * (a / total)[:, None] for p, a in zip(predictions, reversed(areas), strict=True)
        ]
        parts.append(torch.stack(weighted).sum(0))
    return torch.cat(parts, dim=1).transpose(1, 2).reshape(batch, 3, height, width)


def decode_by_convolutions(
    decoder: ImplicitDecoder, features: Tensor, size: tuple[int, int], chunk: int = 4096
) -> Tensor:
    """Mode 3, content projected and queries in chunks, each product a 1x1 convolution in
    channels_last.

    The convolution library uses AVX-512 on CPUs where the matrix library does not (AMD), and is
    then twice as fast.
    """
    h, w = features.shape[-2:]
    height, width = size
    n = decoder.width
    layers = decoder.layers()
    weights, content = pack(layers, decoder.mode, "content")
    kernel = content.content.view(-1, features.shape[1], 3, 3)
    nhwc = features.contiguous(memory_format=torch.channels_last)
    projected = (
        F.conv2d(nhwc, kernel, content.content_bias, padding=1).permute(0, 2, 3, 1).flatten(1, 2)
    )
    i, j = (nearest_index(0, b, a, b, features.device) for a, b in ((h, height), (w, width)))
    dy = local_offset(0, height, i, h, height, features.dtype)
    dx = local_offset(0, width, j, w, width, features.dtype)
    out = features.new_empty(features.shape[0], height * width, 3)
    for image in range(features.shape[0]):
        for query in torch.arange(height * width, device=features.device).split(chunk):
            row = query // width
            column = query % width
            position = torch.stack([dy[row], dx[column]], dim=1)
            position = F.pad(position, (0, 1), value=area_ratio((h, w), size))
            c = projected[image, i[row] * w + j[column]]
            q = (
                torch.relu_(c[:, :n])
                * _conv1x1(position, weights.position, weights.position_bias).sin_()
            )
            for layer in range(len(weights.hidden)):
                product = _conv1x1(q, weights.hidden[layer])
                k = product[:, :n].add_(c[:, (layer + 1) * n : (layer + 2) * n]).relu_()
                q = k * product[:, n:].add_(weights.hidden_bias[layer]).sin_()
            out[image, query] = _conv1x1(q, weights.last, weights.last_bias)
    return out.transpose(1, 2).reshape(-1, 3, height, width)


def _conv1x1(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x ``[n, in]`` times weight ``[out, in]`` transposed, as a convolution of a channels_last
    image of one row.
    """
    image = x[None, None].permute(0, 3, 1, 2)  # [1, in, 1, n], with strides that say channels_last
    return F.conv2d(image, weight[:, :, None, None], bias)[0, :, 0].t()
