"""Who is measured on a GPU: the official formulation as users run it, plain PyTorch at its best,
and our backends.

As ``peers``, but a peer here is a formulation *and* a precision: on a GPU the choice of precision
is most of the speed. Positions and indices of the official formulation are made once, on the
device: they are not what is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.cases import Case
from bench.machine import free_bytes
from bench.peers import decode_by_convolutions
from diinn_fast import DIINN, Graphed, ImplicitDecoder, backends, reference
from diinn_fast.encoders import use_fast_weights
from diinn_fast.graphed import record
from diinn_fast.problem import Problem

Call = Callable[[], object]

CHUNK = 1 << 18
"""Queries at a time of the plain PyTorch peers: large, because launches are what small chunks would
wait for.
"""


@dataclass(frozen=True)
class Peer:
    """``form``: official, eager, conv, or the name of one of our backends; ``precision``: float32
    is the user's default (convolutions in TF32), exact is float32 throughout; 16 bit is autocast,
    or for decode the tensors' own dtype.
    """

    form: str
    precision: str
    compiled: bool = False  # torch.compile, mode max-autotune
    captured: bool = False  # in a CUDA graph

    @property
    def name(self) -> str:
        """``official``, ``eager`` and ``conv`` are what tables compare with: the first of each form
        bears its name.
        """
        plain = {"official": "float32", "eager": "float16", "conv": "float16"}.get(self.form)
        parts = [self.form] + ([] if self.precision == plain else [self.precision])
        return "-".join(parts + ["compiled"] * self.compiled + ["graph"] * self.captured)

    @property
    def title(self) -> str:
        """The peer in a table."""
        forms = {"official": "official formulation", "eager": "plain PyTorch, projected"}
        forms["conv"] = "plain PyTorch, projected, 1x1 conv NHWC"
        precision = {
            "float32": "fp32 (TF32 conv)",
            "exact": "fp32",
            "float16": "fp16",
            "bfloat16": "bf16",
        }
        extra = ", torch.compile max-autotune" * self.compiled + ", CUDA graph" * self.captured
        return (
            f"{forms.get(self.form, f'diinn_fast (backend {self.form})')}, "
            f"{precision[self.precision]}{extra}"
        )

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of its operands."""
        return (
            torch.float32
            if self.precision in ("float32", "exact")
            else getattr(torch, self.precision)
        )


def supports(name: str, dtype: torch.dtype, device: str, form: str = "content") -> bool:
    """Whether a backend does mode 3 in this dtype and form here."""
    backend = backends.load(name)
    problem = Problem(form, 3, (1, 1), (0, 0), (1, 1), None, None, None, 0)
    source = torch.empty(1, 1, 1, 1024, device=device, dtype=dtype)
    return backend.unavailable() is None and backend.unsupported(problem, source) is None


def refused(name: str, dtype: torch.dtype) -> str | None:
    """What a backend's self-check found wrong in this dtype: then plain PyTorch has done its
    work.
    """
    checked = getattr(backends.load(name), "_checked", {}) if name in backends.NAMES else {}
    return next((why for key, why in checked.items() if why and dtype in tuple(key)), None)


def peers_of(case: Case, backend: str = "") -> list[Peer]:
    """Plain PyTorch's, or those of one of our backends; all but the compiled ones, which take
    minutes to compile: ``compiled_of``.
    """
    if not backend:
        found = [Peer("official", "float32"), Peer("official", "bfloat16")]
        return found + [Peer(form, "float16") for form in ("eager", "conv")[: 1 + _decodes(case)]]
    # Integers have no gradients.
    if case.kind == "training" and backends.load(backend).INTEGERS:
        return []
    candidates = [Peer(backend, p) for p in ("float16", "bfloat16", "exact")]
    found = [peer for peer in candidates if supports(backend, peer.dtype, case.device)]
    if case.kind != "training" and case.device == "cuda":
        found.append(Peer(backend, "float16", captured=True))
    return found


def _decodes(case: Case) -> bool:
    return case.kind == "decode"


def compiled_of(case: Case, backend: str = "") -> list[Peer]:
    """Those of ``peers_of`` that torch.compile is used on."""
    if backend:
        wanted = case.kind == "model" and case.device == "cuda"
        return [Peer(backend, "float16", compiled=True, captured=True)] if wanted else []
    found = [Peer("official", p, compiled=True) for p in ("bfloat16", "float32")]
    return found + [Peer("conv", "float16", compiled=True)] * _decodes(case)


def left_out(case: Case, peer: Peer) -> str | None:
    """Why a peer is not tried on this case, or None."""
    need = case.official_bytes()
    free = free_bytes(case.device)
    if peer.form == "official" and (need := need * peer.dtype.itemsize // 4) > 0.9 * free:
        return f"would need {need / 2**30:.1f} GiB, {free / 2**30:.1f} are free"
    return None


def build(case: Case, peer: Peer) -> Call:
    """A function of no arguments that does the case's work once; random numbers are the same for
    every peer.
    """
    torch.manual_seed(0)
    if peer.captured and case.kind == "model":
        return _graphed(case, peer)
    work = {"decode": _decode, "model": _model, "training": _training}[case.kind](case, peer)
    return capture(work) if peer.captured else work


def _decoder(decoder: ImplicitDecoder, case: Case, peer: Peer) -> Callable[[Tensor], Tensor]:
    """Features to RGB in the peer's form."""
    size = case.size
    function: Callable[[Tensor], Tensor]
    if peer.form == "official":
        function = official(decoder, case)
    elif peer.form == "conv":
        function = lambda features: decode_by_convolutions(decoder, features, size, CHUNK)  # noqa: E731
    else:
        chunk = CHUNK if peer.form == "eager" else None
        function = lambda features: decoder(features, size, chunk, backend=peer.form)  # noqa: E731
    return torch.compile(function, mode="max-autotune") if peer.compiled else function


def official(decoder: ImplicitDecoder, case: Case) -> Callable[[Tensor], Tensor]:
    """``reference.decode`` with indices and positions made beforehand."""
    h, w = case.lr
    height, width = case.size
    weights = decoder.state_dict(keep_vars=True)
    p, i, j = reference.position(
        (h, w), case.size, torch.arange(height), torch.arange(width), torch.float32
    )
    position = p.to(case.device, decoder.last_layer.weight.dtype)[None]
    rows = i.to(case.device)
    columns = j.to(case.device)

    def decode(features: Tensor) -> Tensor:
        batch, channels = features.shape[:2]
        unfolded = F.unfold(features, 3, padding=1).view(batch, channels * 9, h, w)
        x = unfolded.index_select(2, rows).index_select(3, columns)
        return reference.network(weights, x, position.expand(batch, -1, -1, -1), case.mode)

    return decode


def _surroundings(case: Case, peer: Peer) -> AbstractContextManager[Any]:
    return torch.autocast(case.device, peer.dtype, enabled=peer.dtype != torch.float32)


def _exactly(peer: Peer, call: Call) -> Call:
    """The call with TF32 off for ``exact``; everything else runs with PyTorch's own defaults."""
    if peer.precision != "exact":
        return call
    conv = torch.backends.cudnn.conv

    def exact() -> object:
        before = conv.fp32_precision
        conv.fp32_precision = "ieee"
        try:
            return call()
        finally:
            conv.fp32_precision = before

    return exact


def _decode(case: Case, peer: Peer) -> Call:
    features = torch.rand(case.batch, 64, *case.lr) * 2 - 1
    decoder = ImplicitDecoder(64, mode=case.mode)
    # The official formulation in 16 bit is run by autocast, ours and plain PyTorch by their
    # tensors' dtype.
    dtype = torch.float32 if peer.form == "official" else peer.dtype
    features = features.to(case.device, dtype)
    decode = _decoder(decoder.to(case.device, dtype), case, peer)

    @torch.inference_mode()
    def call() -> Tensor:
        with _surroundings(
            case, replace(peer, precision="float32") if dtype == peer.dtype else peer
        ):
            return decode(features)

    return _exactly(peer, call)


def _model(case: Case, peer: Peer) -> Call:
    image = (torch.rand(case.batch, 3, *case.lr) * 2 - 1).to(case.device)
    model = DIINN(mode=case.mode, encoder=case.encoder).to(case.device).eval()
    if peer.form != "official":
        use_fast_weights(model.encoder)
    decode = _decoder(model.decoder, case, peer)

    @torch.inference_mode()
    def call() -> Tensor:
        with _surroundings(case, peer):
            encode = model.encoder.plain(image) if peer.form == "official" else model.encoder(image)
            return decode(encode)

    return _exactly(peer, call)


def _training(case: Case, peer: Peer) -> Call:
    """Forward and backward of the decoder: float32 parameters, gradients for the features and all
    of them.
    """
    features = (torch.rand(case.batch, 64, *case.lr) * 2 - 1).to(case.device).requires_grad_()
    target = (torch.rand(case.batch, 3, *case.size) * 2 - 1).to(case.device)
    decoder = ImplicitDecoder(64, mode=case.mode).to(case.device)
    decode = _decoder(decoder, case, peer)
    inputs = [features, *decoder.parameters()]

    def step() -> Sequence[Tensor]:
        with _surroundings(case, peer):
            out = decode(features)
        return torch.autograd.grad(F.l1_loss(out.float(), target), inputs)

    return _exactly(peer, step)


def _graphed(case: Case, peer: Peer) -> Call:
    image = (torch.rand(case.batch, 3, *case.lr) * 2 - 1).to(case.device)
    model = DIINN(mode=case.mode, encoder=case.encoder).to(case.device).eval()
    graphed = Graphed(model, dtype=peer.dtype, compile=peer.compiled)
    return lambda: graphed(image, case.size, backend=peer.form)


def capture(call: Call) -> Call:
    """The call recorded in a CUDA graph: replaying it costs one launch."""
    out, replay = record(call)

    def again() -> object:
        replay()
        return out

    return again
