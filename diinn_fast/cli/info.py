"""``diinn-fast info``: what this installation can do."""

from __future__ import annotations

import json
import os
import platform
from typing import Any

import torch

from diinn_fast import __version__, backends
from diinn_fast.cli.common import make_parser
from diinn_fast.inference.devices import auto_text, pick_device
from diinn_fast.model import DEFAULT_WEIGHTS, bundled_names

EXAMPLE = "  diinn-fast info --json\n"


def main(arguments: list[str]) -> int:
    """The command; returns its exit status."""
    parser = make_parser(
        "info", "[--json]", "Show versions, devices, threads, bundled models and backends.", EXAMPLE
    )
    parser.add_argument("--json", action="store_true", help="for programs")
    options = parser.parse_args(arguments)
    facts = collect()
    print(json.dumps(facts, indent=2) if options.json else as_text(facts))
    return 0


def collect() -> dict[str, Any]:
    """Versions, devices, threads, models and backends of this installation."""
    return {
        "diinn_fast": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "devices": _devices(),
        "threads": torch.get_num_threads(),
        "models": bundled_names(),
        "default_model": DEFAULT_WEIGHTS,
        "requested_backend": backends.requested(),
        "auto_precision": auto_text(backends.requested(), pick_device(None)),
        "backends": list(backends.table()),
    }


def _devices() -> dict[str, str]:
    devices = {"cpu": f"{os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"}
    for n in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(n)
        devices[f"cuda:{n}"] = f"{properties.name}, {properties.total_memory / 2**30:.1f} GiB"
    if torch.backends.mps.is_available():
        devices["mps"] = "Apple GPU"
    return devices


def as_text(facts: dict[str, Any]) -> str:
    """The facts as lines for a person."""
    lines = [f"{name:18} {facts[name]}" for name in ("diinn_fast", "torch", "python", "system")]
    lines += [f"device {name:11} {text}" for name, text in facts["devices"].items()]
    lines += [f"{'threads':18} {facts['threads']}"]
    for name in facts["models"] or ["none"]:
        lines.append(f"{'model':18} {name}{' (default)' if name == facts['default_model'] else ''}")
    lines += [
        f"{'backend in force':18} {facts['requested_backend']}",
        f"{'precision auto':18} {facts['auto_precision']}",
        "",
        *_aligned(facts["backends"]),
    ]
    return "\n".join(lines)


def _aligned(rows: list[dict[str, str]]) -> list[str]:
    """A table with one column per key."""
    names = list(rows[0])
    table = [names, *([str(row[n]) for n in names] for row in rows)]
    widths = [max(len(line[c]) for line in table) for c in range(len(names))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in table
    ]
