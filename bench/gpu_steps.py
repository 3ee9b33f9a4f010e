"""What ``bench.gpu`` measures, one step per process:
``python -m bench.gpu_steps STEP --out FOLDER --device cuda``.

Speed and memory go to FOLDER/<suite>.json in the format of ``pytest bench --save``, one record at a
time, so that nothing is lost when a step is stopped; the rest goes to FOLDER/run/.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from torch import Tensor

from bench import machine, memory
from bench.cases import Case
from bench.gpu_peers import (
    Peer,
    build,
    compiled_of,
    fused,
    left_out,
    official,
    peers_of,
    refused,
    supports,
)
from bench.table import text_table
from bench.timing import interleave, summary
from diinn_fast import DIINN
from diinn_fast.model import DEFAULT_WEIGHTS

LARGE = [Case("decode", (512, 512), 4), Case("decode", (384, 384), 4)]
"""The second because the official formulation cannot index more than 2^31 elements, which it
reaches at 3.7 Mpx.
"""
SMALL = [Case("decode", (48, 48), s) for s in (2, 3, 4, 6, 8)]
TRAINING = [Case("training", (48, 48), 4, batch=16)]
MODEL = [Case("model", (48, 48), s, encoder="rdn") for s in (2, 3, 4, 6, 8)]
FULL = [Case("decode", (180, 320), s) for s in (2, 4, 8)] + [Case("decode", (1024, 1024), 4)]
FULL += [Case("training", (48, 48), s, batch=16) for s in (2, 3)]
FULL += [Case("model", lr, 4, encoder="edsr-baseline") for lr in ((48, 48), (128, 128))]
HUGE = Case("decode", (1024, 1024), 8)
PHOTO = machine.ROOT / "examples" / "coffee.png"

LIMITS = {"exact": (5e-4, 0.0), "float16": (3e-2, 1e-5)}
"""8-bit values that may differ from float32's, and by more than one level, as fractions; and PSNR
by 0.01 dB.
"""


class Book:
    """The files of one run: records are merged into what earlier steps of the same run wrote."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.folder = Path(options.out)
        self.device = options.device
        self.run = options.run
        self.dry = options.dry
        (self.folder / "run").mkdir(parents=True, exist_ok=True)

    def record(self, suite: str, case: Case) -> dict[str, Any]:
        """The case's record as it stands."""
        for record in self._load(suite)["records"]:
            if record["name"] == case.name:
                return record
        description = {
            "case": case.describe(),
            "name": case.name,
            "title": case.title,
            "size": list(case.size),
        }
        return {**description, "peers": {}, "left_out": {}}

    def save(self, suite: str, record: dict[str, Any]) -> None:
        content = self._load(suite)
        others = [r for r in content["records"] if r["name"] != record["name"]]
        content["records"] = sorted(
            [*others, record], key=lambda r: (list(r["case"]["lr"]), r["case"]["scale"])
        )
        self.write(f"{suite}.json", content)
        print(text_table(suite, record), flush=True)

    def write(self, name: str, content: Any) -> None:
        path = self.folder / name
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(content, indent=1) + "\n")
        partial.replace(path)

    def _load(self, suite: str) -> dict[str, Any]:
        path = self.folder / f"{suite}.json"
        content = json.loads(path.read_text()) if path.exists() else {}
        if content.get("run") == self.run:
            return content
        about = machine.facts(self.device) | {
            "command": "python -m bench.gpu",
            "dtype": "as named",
            "full": False,
        }
        return about | {"gpu": gpu_facts(), "run": self.run, "suite": suite, "records": []}

    def cases(self, cases: Sequence[Case]) -> list[Case]:
        """On this device; a dry run takes the smallest sizes that mean the same."""
        found = [replace(case, device=self.device) for case in cases]
        if self.dry:
            found = [
                replace(c, lr=(3, 4), scale=min(c.scale, 3), batch=min(c.batch, 2)) for c in found
            ]
        return list(dict.fromkeys(found))


def gpu_facts() -> dict[str, str]:
    """Driver, power limit and clocks, as the driver's tool says; empty where there is none."""
    names = ["driver_version", "power.limit", "clocks.max.sm", "clocks.max.mem", "memory.total"]
    command = ["nvidia-smi", f"--query-gpu={','.join(names)}", "--format=csv,noheader", "-i", "0"]
    try:
        line = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=20
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(names, (v.strip() for v in line.split(",")), strict=False))


def time_together(book: Book, suite: str, case: Case, peers: Sequence[Peer]) -> None:
    """Time peers in the same rounds with the device's own product, and add them to the case's
    record.
    """
    record = book.record(suite, case)
    calls: dict[str, Callable[[], object]] = {}
    for peer in peers:
        release()
        reason = left_out(case, peer) or attempt(partial(start, case, peer, calls))
        if reason:
            record["left_out"][peer.name] = reason
            print(f"{peer.name} on {case.name}: {reason}", flush=True)
    rates = machine.rates(case.device)
    calls |= {name: call for name, (call, _) in rates.items()}
    effort = (0.05, 2) if book.dry else (0.8, 30)
    samples = interleave(calls, lambda call: machine.seconds(call, case.device), *effort)
    measured = {
        n: {"flop_per_s": f / summary(samples[n])["median"], **summary(samples[n])}
        for n, (_, f) in rates.items()
    }
    record.setdefault("rates", measured)
    for peer in peers:
        if (values := samples.get(peer.name)) is not None:
            entry: dict[str, Any] = {"title": peer.title, **summary(values), "samples": values}
            entry["flops"] = case.flops(peer.name)
            entry["fraction"] = {
                n: entry["flops"] / entry["median"] / r["flop_per_s"] for n, r in measured.items()
            }
            record["peers"][peer.name] = entry
            record["left_out"].pop(peer.name, None)
    book.save(suite, record)


def start(case: Case, peer: Peer, calls: dict[str, Callable[[], object]]) -> None:
    """Add a peer that has run once, so that what it compiles and loads is behind it."""
    call = build(case, peer)
    call()
    synchronize(case.device)
    trust(peer)
    calls[peer.name] = call


def trust(peer: Peer) -> None:
    """Raise if plain PyTorch did the work: its time or memory must not bear the backend's name."""
    if reason := refused(peer.form, peer.dtype):
        raise RuntimeError(f"plain PyTorch ran instead: {reason}")


def attempt(work: Callable[[], object]) -> str | None:
    """Why it failed, in a line; a peer that cannot run a case is a result, not an end."""
    try:
        work()
    except Exception as error:
        torch.compiler.reset()
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:120]}"
    return None


def release() -> None:
    """Give memory that nothing uses back to the device, where the next peer's is counted."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def ours_ran(book: Book, suite: str, cases: Sequence[Case]) -> int:
    """1 if one of our own backends failed on a case."""
    failed = {
        n: why
        for c in cases
        for n, why in book.record(suite, c)["left_out"].items()
        if n.split("-")[0] in fused(c.device)
    }
    for name, why in failed.items():
        print(f"FAILED: {name}: {why}")
    return int(bool(failed))


def speed(book: Book, suite: str, cases: Sequence[Case]) -> int:
    cases = book.cases(cases)
    for case in cases:
        time_together(book, suite, case, peers_of(case))
    return ours_ran(book, suite, cases)


def compiled(book: Book) -> int:
    """One peer at a time: any of them may take longer to compile than there is time."""
    for case in book.cases(
        [*LARGE[1:], *MODEL[2:3], *TRAINING, *LARGE[:1]]
    ):  # there the official one can run at all
        for peer in compiled_of(case):
            time_together(book, case.kind, case, [peer])
            torch.compiler.reset()
    return 0


def memory_of(book: Book) -> int:
    """Peak memory beyond inputs and outputs: of a large output, and of a training step beside the
    official one.
    """
    found = fused(book.device)
    ours = [Peer(name, p) for name in found for p in ("float16", "bfloat16")]
    trained = [Peer("official", "bfloat16"), Peer("official", "float32"), *ours]
    cases = book.cases([HUGE, *TRAINING])
    for case, peers in zip(cases, (ours, trained), strict=True):
        record = book.record("memory", case)
        for peer in peers:
            release()
            reason = left_out(case, peer) or attempt(partial(peak, case, peer, record))
            if reason:
                record["left_out"][peer.name] = reason
        book.save("memory", record)
    return ours_ran(book, "memory", cases)


def peak(case: Case, peer: Peer, record: dict[str, Any]) -> None:
    small = build(replace(case, lr=(3, 4), scale=2, batch=1), peer)
    small()  # what libraries load at first use is not the peer's
    call = build(case, peer)
    trust(peer)
    highest, result = (
        memory._cuda_peak(call) if case.device == "cuda" else memory._resident_peak(call)
    )
    output = sum(v.numel() * v.element_size() for v in memory._tensors(result))
    record["peers"][peer.name] = {
        "title": peer.title,
        "extra": max(0, highest - output),
        "output": output,
    }


def photo(book: Book, paths: Sequence[str]) -> int:
    """The bundled model on photographs: LR is the photo at a quarter, 8 bit; SR against float32's,
    in 8 bit, and HR.
    """
    results = {}
    failed = False
    for path in [Path(p) for p in paths] or [PHOTO]:
        hr = torch.from_numpy(np.array(PIL.Image.open(path).convert("RGB"))).permute(2, 0, 1)
        height, width = (n // 4 * 4 for n in ((32, 40) if book.dry else hr.shape[1:]))
        hr = (hr[:, :height, :width].float() / 255).to(book.device)
        lr = F.interpolate(
            hr[None], (height // 4, width // 4), mode="bicubic", antialias=True
        ).clamp(0, 1)
        lr = (lr * 255).round() / 255
        images, want = upscaled(lr, (height, width), book.device)
        for name, got in images.items():
            found = differences(got, want, hr)
            backend, precision = name.rsplit("-", 1)
            if precision in LIMITS and backend in fused(book.device):
                one, two = LIMITS[precision]
                found["met"] = (
                    found["differ"] <= one
                    and found["by more"] <= two
                    and abs(found["psnr change"]) < 0.01
                )
                found["met"] &= refused(backend, Peer(backend, precision).dtype) is None
                failed |= not found["met"] and not book.dry
            results[f"{path.name} {name}"] = found
            print(f"{path.name} {name}: {found}", flush=True)
            book.write("run/photo.json", results)
    return int(failed)


@torch.inference_mode()
def upscaled(lr: Tensor, size: tuple[int, int], device: str) -> tuple[dict[str, Tensor], Tensor]:
    """SR in [0, 1] of every form and precision, and that of the definition in float32."""
    model = DIINN.from_pretrained(DEFAULT_WEIGHTS).to(device).eval()
    settings = torch.backends.cuda.matmul, torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = [s.fp32_precision for s in settings]
    x = (lr - 0.5) / 0.5
    case = Case("model", (lr.shape[-2], lr.shape[-1]), 4, encoder="edsr-baseline", device=device)
    assert case.size == size
    reference = official(model.decoder, case)

    def run(form: str, precision: str) -> Tensor:
        for setting in settings:
            setting.fp32_precision = "tf32" if precision == "tf32" else "ieee"
        half = precision in ("float16", "bfloat16")
        with torch.autocast(device, getattr(torch, precision) if half else None, enabled=half):
            out = (
                reference(model.encoder.plain(x))
                if form == "official"
                else model(x, size, backend=form)
            )
        return (out[0].float() * 0.5 + 0.5).clamp(0, 1)

    try:
        want = run("official", "exact")
        pairs = [
            (f, p)
            for f in ["official", *fused(device)]
            for p in ("exact", "tf32", "float16", "bfloat16")
        ]
        dtypes = {"float16": torch.float16, "bfloat16": torch.bfloat16}
        pairs = [
            (f, p)
            for f, p in pairs
            if f == "official" or supports(f, dtypes.get(p, torch.float32), device)
        ]
        return {f"{f}-{p}": run(f, p) for f, p in pairs}, want
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


def prepare(book: Book) -> int:
    """One decode by each backend: some compile at first use, which many steps side by side should
    not do.
    """
    for name in fused(book.device):
        build(Case("decode", (3, 4), 2, device=book.device), Peer(name, "float16"))()
        print(f"backend {name} runs", flush=True)
    return 0


def profile(book: Book) -> int:
    """A few calls for a profiler to look at."""
    for name in fused(book.device):
        for case in book.cases([LARGE[0], *TRAINING]):
            call = build(case, Peer(name, "float16"))
            for _ in range(2):
                call()
            synchronize(book.device)
    return 0


STEPS: dict[str, Callable[[Book], int]] = {
    "large": lambda book: speed(book, "decode", LARGE),
    "small": lambda book: speed(book, "decode", SMALL),
    "training": lambda book: speed(book, "training", TRAINING),
    "model": lambda book: speed(book, "model", MODEL),
    "more": lambda book: max(
        speed(book, kind, [c for c in FULL if c.kind == kind])
        for kind in ("decode", "training", "model")
    ),
    "prepare": prepare,
    "compiled": compiled,
    "memory": memory_of,
    "profile": profile,
}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu_steps", description=__doc__.splitlines()[0]
    )
    parser.add_argument("step", choices=[*STEPS, "photo"])
    parser.add_argument("--out", required=True, help="folder of the results")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--run", default="", help="steps of one run have the same")
    parser.add_argument("--dry", action="store_true", help="tiny sizes")
    parser.add_argument(
        "--photos", nargs="*", default=[], help="instead of the photograph in examples/"
    )
    options = parser.parse_args()
    book = Book(options)
    return photo(book, options.photos) if options.step == "photo" else STEPS[options.step](book)


if __name__ == "__main__":
    sys.exit(main())
