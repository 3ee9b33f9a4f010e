"""What ``bench.gpu`` measures, one step of one backend per process:
``python -m bench.gpu_steps STEP --backend NAME --out FOLDER --device cuda``.

Without ``--backend`` it is plain PyTorch's turn: the official formulation and its better forms.
Every peer is timed in the same rounds as the device's own matrix product, and stored at once.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from bench import gpu_kernels, gpu_photo, machine, memory
from bench.cases import Case
from bench.gpu_book import Book
from bench.gpu_kernels import synchronize
from bench.gpu_peers import Peer, build, compiled_of, left_out, peers_of, refused
from bench.timing import interleave, summary
from diinn_fast import backends

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


def time_peer(book: Book, suite: str, case: Case, peer: Peer) -> str | None:
    """Time a peer in turn with the device's own products and store it, or say why it has no time.

    A peer that cannot run a case is a result, not an end.
    """
    release()
    calls: dict[str, Callable[[], object]] = {}
    if reason := left_out(case, peer) or attempt(partial(start, case, peer, calls)):
        book.leave_out(suite, case, peer.name, reason)
        return reason
    # In turn with the device's own products, so that both see the same clock and temperature.
    rates = machine.rates(case.device)
    calls |= {name: call for name, (call, _) in rates.items()}
    effort = (0.05, 2) if book.dry else (0.8, 30)
    samples = interleave(calls, lambda call: machine.seconds(call, case.device), *effort)
    # The peer's time, and its part of each product's rate.
    own = samples[peer.name]
    entry: dict[str, Any] = {"title": peer.title, **summary(own), "samples": own}
    entry["flops"] = case.flops(peer.name)
    measured: dict[str, Any] = {}
    for name, (_, flops) in rates.items():
        values = summary(samples[name])
        measured[name] = {"flop_per_s": flops / values["median"], **values}
    entry["fraction"] = {
        name: entry["flops"] / entry["median"] / rate["flop_per_s"]
        for name, rate in measured.items()
    }
    book.add(suite, case, peer.name, entry, measured)
    return None


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


def speed(book: Book, suite: str, cases: Sequence[Case], backend: str) -> int:
    """1 if one of our own peers failed on a case."""
    failed = False
    for case in book.cases(cases):
        for peer in peers_of(case, backend):
            failed |= time_peer(book, suite, case, peer) is not None
        book.show(suite, case)
    return int(failed and bool(backend))


def more(book: Book, backend: str) -> int:
    """Time all further cases of every kind."""
    kinds = ("decode", "training", "model")
    return max(speed(book, k, [c for c in FULL if c.kind == k], backend) for k in kinds)


def compiled(book: Book, backend: str) -> int:
    """Any peer may take longer to compile than there is time: first where the official one can
    run at all.
    """
    for case in book.cases([*LARGE[1:], *MODEL[2:3], *TRAINING, *LARGE[:1]]):
        for peer in compiled_of(case, backend):
            time_peer(book, case.kind, case, peer)
            torch.compiler.reset()
    return 0


def memory_of(book: Book, backend: str) -> int:
    """Peak memory beyond inputs and outputs: of a large output, and of a training step. 1 if one of
    our own peers failed.
    """
    failed = False
    for case in book.cases([HUGE, *TRAINING]):
        # The official formulation does not fit the large output: there ours stand alone.
        official = [Peer("official", "bfloat16"), Peer("official", "float32")]
        ours = [Peer(backend, precision) for precision in ("float16", "bfloat16")]
        if backend and case.kind == "training" and backends.load(backend).INTEGERS:
            continue
        plain = official if case.kind == "training" else []
        for peer in ours if backend else plain:
            release()
            measure = partial(peak, book, case, peer)
            if reason := left_out(case, peer) or attempt(measure):
                book.leave_out("memory", case, peer.name, reason)
                failed = True
        book.show("memory", case)
    return int(failed and bool(backend))


def peak(book: Book, case: Case, peer: Peer) -> None:
    """Peak memory of a peer."""
    # What libraries load at first use is not the peer's.
    small = build(replace(case, lr=(3, 4), scale=2, batch=1), peer)
    small()
    call = build(case, peer)
    trust(peer)
    measure = memory.cuda_peak if case.device == "cuda" else memory.resident_peak
    highest, result = measure(call)
    output = sum(v.numel() * v.element_size() for v in memory._tensors(result))
    extra = max(0, highest - output)
    book.add("memory", case, peer.name, {"title": peer.title, "extra": extra, "output": output})


STEPS: dict[str, Callable[[Book, str], int]] = {
    "prepare": gpu_kernels.prepare,
    "profile": gpu_kernels.profile,
    "large": lambda book, backend: speed(book, "decode", LARGE, backend),
    "small": lambda book, backend: speed(book, "decode", SMALL, backend),
    "training": lambda book, backend: speed(book, "training", TRAINING, backend),
    "model": lambda book, backend: speed(book, "model", MODEL, backend),
    "memory": memory_of,
    "compiled": compiled,
    "more": more,
}


def main() -> int:
    """One step in a process of its own; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu_steps", description=__doc__.splitlines()[0]
    )
    parser.add_argument("step", choices=[*STEPS, "quick", "photo"])
    parser.add_argument("--backend", default="", help="one of ours (default: plain PyTorch)")
    parser.add_argument("--variant", default="", help="the name under which quick stores it")
    parser.add_argument("--out", required=True, help="folder of the results")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--run", default="", help="steps of one run have the same")
    parser.add_argument("--dry", action="store_true", help="tiny sizes")
    parser.add_argument(
        "--photos", nargs="*", default=[], help="instead of the photograph in examples/"
    )
    options = parser.parse_args()
    book = Book(options)
    if options.step == "quick":
        return gpu_kernels.quick(book, options.backend, options.variant or options.backend)
    if options.step == "photo":
        return gpu_photo.photo(book, options.backend, options.photos)
    return STEPS[options.step](book, options.backend)


if __name__ == "__main__":
    sys.exit(main())
