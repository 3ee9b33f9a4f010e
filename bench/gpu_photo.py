"""The bundled model on photographs: what every backend and precision makes of them, in 8 bit,
against float32 by the definition.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from torch import Tensor

from bench import machine
from bench.cases import Case
from bench.gpu_book import Book
from bench.gpu_peers import official, refused, supports
from diinn_fast import DIINN, backends
from diinn_fast.model import DEFAULT_WEIGHTS

PHOTO = machine.ROOT / "examples" / "coffee.png"

LIMITS = {"exact": (5e-4, 0.0), "float16": (3e-2, 1e-5)}
"""8-bit values that may differ from float32's, and by more than one level, as fractions; and PSNR
by 0.01 dB.
"""
OF_INTEGERS = (0.15, 1e-3)
"""The same for products of 8-bit integers, in whatever else is computed."""

PRECISIONS = {
    "exact": torch.float32,
    "tf32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


def photo(book: Book, backend: str, paths: Sequence[str]) -> int:
    """LR is the photo at a quarter, 8 bit; SR against float32's, in 8 bit, and HR. 1 if a backend
    misses LIMITS.
    """
    failed = False
    for path in [Path(p) for p in paths] or [PHOTO]:
        lr, hr = pair(path, book)
        images, want = upscaled(lr, (hr.shape[-2], hr.shape[-1]), book.device, backend)
        for name, got in images.items():
            found = differences(got, want, hr)
            form, precision = name.rsplit("-", 1)
            limits = OF_INTEGERS if backends.load(backend).INTEGERS else LIMITS.get(precision)
            if limits is not None and form == backend:
                found["met"] = meets(found, limits)
                found["met"] &= refused(backend, PRECISIONS[precision]) is None
                failed |= not found["met"] and not book.dry
            print(f"{path.name} {name}: {found}", flush=True)
            book.add_values("photo", {f"{path.name} {name}": found})
    return int(failed)


def pair(path: Path, book: Book) -> tuple[Tensor, Tensor]:
    """LR ``[1, 3, h, w]`` and HR ``[3, 4h, 4w]`` in [0, 1]."""
    hr = torch.from_numpy(np.array(PIL.Image.open(path).convert("RGB"))).permute(2, 0, 1)
    height, width = (n // 4 * 4 for n in ((32, 40) if book.dry else hr.shape[1:]))
    hr = (hr[:, :height, :width].float() / 255).to(book.device)
    small = (height // 4, width // 4)
    lr = F.interpolate(hr[None], small, mode="bicubic", antialias=True).clamp(0, 1)
    return (lr * 255).round() / 255, hr


def meets(found: dict[str, Any], limits: tuple[float, float]) -> bool:
    """Whether differences to plain PyTorch are within the limits."""
    one, two = limits
    return bool(
        found["differ"] <= one and found["by more"] <= two and abs(found["psnr change"]) < 0.01
    )


@torch.inference_mode()
def upscaled(
    lr: Tensor, size: tuple[int, int], device: str, backend: str
) -> tuple[dict[str, Tensor], Tensor]:
    """SR in [0, 1] of the official formulation and of a backend in every precision, and that of the
    definition in float32.
    """
    model = DIINN.from_pretrained(DEFAULT_WEIGHTS).to(device).eval()
    # The user's settings come back, whatever happens.
    settings = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before = [s.fp32_precision for s in settings]
    x = (lr - 0.5) / 0.5
    case = Case("model", (lr.shape[-2], lr.shape[-1]), 4, encoder="edsr-baseline", device=device)
    assert case.size == size
    reference = official(model.decoder, case)

    def run(form: str, precision: str) -> Tensor:
        # float32 in both libraries as asked, 16 bit by autocast, as users have it.
        for setting in settings:
            setting.fp32_precision = "tf32" if precision == "tf32" else "ieee"
        dtype = PRECISIONS[precision]
        half = dtype != torch.float32
        with torch.autocast(device, dtype if half else None, enabled=half):
            out = (
                reference(model.encoder.plain(x))
                if form == "official"
                else model(x, size, backend=form)
            )
        return (out[0].float() * 0.5 + 0.5).clamp(0, 1)

    try:
        want = run("official", "exact")
        # The official formulation in every precision, a backend in those that it has.
        pairs = [
            (form, precision)
            for form in ("official", backend)
            for precision, dtype in PRECISIONS.items()
            if form == "official" or supports(form, dtype, device)
        ]
        return {f"{form}-{precision}": run(form, precision) for form, precision in pairs}, want
    finally:
        for setting, value in zip(settings, before, strict=True):
            setting.fp32_precision = value


def differences(got: Tensor, want: Tensor, hr: Tensor) -> dict[str, Any]:
    """Fractions of 8-bit values that differ, and by more than one level; PSNR against HR (8 bit)
    and its change.
    """
    a = (got * 255).round()
    b = (want * 255).round()
    levels = (a - b).abs()
    psnr = [float(-10 * torch.log10((v / 255 - hr).square().mean())) for v in (a, b)]
    return {
        "differ": float((levels > 0).double().mean()),
        "by more": float((levels > 1).double().mean()),
        "largest": int(levels.max()),
        "psnr": psnr[0],
        "psnr change": psnr[0] - psnr[1],
    }
