"""What the GPU kernels are meant to reach, and what a run measured of it. Figures that miss are
shown, not hidden.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Records = dict[str, dict[str, Any]]
OURS = ("-bfloat16", "-float16", "-exact", "-graph")
INTEGERS = ("triton_int8", "cuda_int8")
"""The backends with 8-bit products, which have a promise of their own."""


def judge(folder: Path) -> list[dict[str, Any]]:
    """Every promise with its measurement, or None where the folder has none:
    ``{what, wanted, got, met}``.
    """
    decode = load(folder, "decode")
    model = load(folder, "model")
    training = load(folder, "training")
    memory = load(folder, "memory")
    found = []

    def add(what: str, wanted: float, got: float | None, least: bool = True) -> None:
        met = None if got is None else (got >= wanted if least else got <= wanted)
        found.append(
            {
                "what": what,
                "wanted": f"{'>=' if least else '<='} {wanted:g}",
                "got": got,
                "met": met,
            }
        )

    # The decode, of a large image.
    for name in ("decode-512x512-x4", "decode-384x384-x4"):
        record = decode.get(name, {})
        add(f"{name}: of the bf16 matmul rate", 0.70, fraction(record))
        add(f"{name}: x official, its default", 10, ratio(record, ["official"]))
        add(f"{name}: x official, autocast or compiled", 5, ratio(record, others(record)))
        add(f"{name}: x best plain PyTorch projected", 2, ratio(record, plain(record)))
        add(f"{name}: int8, x our fastest in 16 bit", 1.2, of_integers(record))
    # Memory; content is made strip by strip, so it counts too.
    huge = memory.get("decode-1024x1024-x8", {}).get("peers", {})
    extra = min((v["extra"] for k, v in huge.items() if k.endswith("float16")), default=None)
    beyond = None if extra is None else extra / 2**30
    add("8192x8192 from 1024x1024: GiB beyond the output", 1.0, beyond, least=False)
    # Training, in time and memory.
    step = training.get("training-48x48-x4", {})
    add("training step: x official under autocast", 4, ratio(step, ["official-bfloat16"]))
    peers = memory.get("training-48x48-x4", {}).get("peers", {})
    least = min(
        (v["extra"] for k, v in peers.items() if k.endswith(OURS) and not k.startswith("official")),
        default=None,
    )
    base = peers.get("official-bfloat16", {}).get("extra")
    add(
        "training step: part of the official's memory under autocast",
        1 / 8,
        least / base if least and base else None,
        False,
    )
    # End to end, the paper's table of run times.
    for scale in (2, 3, 4, 6, 8):
        name = f"model-rdn-48x48-x{scale}"
        add(f"{name}: x official, its default", 3, ratio(model.get(name, {}), ["official"]))
    return found


def load(folder: Path, suite: str) -> Records:
    """The records of a suite, by name."""
    path = folder / f"{suite}.json"
    content = json.loads(path.read_text()) if path.exists() else {}
    return {r["name"]: r for r in content.get("records", [])}


def ours(record: dict[str, Any]) -> float | None:
    """The least median of our 16-bit peers, in seconds."""
    forms = ("official", "eager", "conv", *INTEGERS)
    peers = record.get("peers", {}).items()
    return min(
        (v["median"] for k, v in peers if not k.startswith(forms) and "float16" in k), default=None
    )


def others(record: dict[str, Any]) -> list[str]:
    """The official formulation under autocast and compiled."""
    return [k for k in record.get("peers", {}) if k.startswith("official-")]


def plain(record: dict[str, Any]) -> list[str]:
    """Peers of a record that are plain PyTorch."""
    return [k for k in record.get("peers", {}) if k.startswith(("eager", "conv"))]


def ratio(record: dict[str, Any], names: list[str]) -> float | None:
    """How many times faster ours is than the fastest of the named peers."""
    times = [record["peers"][n]["median"] for n in names if n in record.get("peers", {})]
    own = ours(record)
    return min(times) / own if times and own else None


def of_integers(record: dict[str, Any]) -> float | None:
    """How many times faster 8-bit products are than ours in 16 bit."""
    peers = record.get("peers", {}).items()
    least = min((v["median"] for k, v in peers if k.startswith(INTEGERS)), default=None)
    own = ours(record)
    return own / least if own and least else None


def fraction(record: dict[str, Any]) -> float | None:
    """Our share of the matrix rate that was measured beside it."""
    own = ours(record)
    peers = record.get("peers", {}).values()
    return next((v["fraction"]["torch.mm"] for v in peers if own and v["median"] == own), None)


def line(promise: dict[str, Any]) -> str:
    """One promise as text."""
    state = {None: "-", True: "met", False: "MISSED"}[promise["met"]]
    got = "not measured" if promise["got"] is None else f"{promise['got']:.3g}"
    return f"{state:7} {promise['what']:64} {promise['wanted']:>8}   {got}"
