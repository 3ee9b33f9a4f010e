"""One record of measurements as rows, for the terminal and for docs/performance.md."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def rows(record: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a record, whatever was measured: seconds, or bytes."""
    if any("extra" in entry for entry in record["peers"].values()):
        return _memory_rows(record)
    return _speed_rows(record)


def _speed_rows(record: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    peers = record["peers"]
    rates = record.get("rates", {})
    base = _median(peers, ["official"])
    plain = _median(peers, ["eager", "conv"])
    # The matrix library may be the faster one: the best library rate is the greater of the two.
    best = max(rates, key=lambda name: rates[name]["flop_per_s"], default=None)
    header = ["", "median ms", "min", "quartiles", "max", "rounds", "vs official", "vs best plain"]
    header += ["of torch.mm", "of best library rate"] if rates else []
    table = []
    for peer, entry in peers.items():
        ratio = [
            f"{other / entry['median']:.2f}x" if other and peer != "bicubic" else ""
            for other in (base, plain)
        ]
        line = [entry["title"], *(_ms(entry[k]) for k in ("median", "min"))]
        line += [
            f"{_ms(entry['q1'])} .. {_ms(entry['q3'])}",
            _ms(entry["max"]),
            str(entry["rounds"]),
            *ratio,
        ]
        if rates:
            fraction = entry.get("fraction", {})
            line += [
                f"{fraction[name]:.2f}" if name in fraction else "" for name in ("torch.mm", best)
            ]
        table.append(line)
    for peer, reason in record["left_out"].items():
        table.append([peer, f"({reason})"])
    return header, table


def _memory_rows(record: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    peers = record["peers"]
    official = peers.get("official", {}).get("extra")
    table = []
    for entry in peers.values():
        ratio = f"{entry['extra'] / official:.3f}" if official else ""
        table.append([entry["title"], _mib(entry["extra"]), _mib(entry["output"]), ratio])
    for peer, reason in record["left_out"].items():
        table.append([peer, f"({reason})"])
    return ["", "extra MiB", "output MiB", "of the official's"], table


def rates_line(record: dict[str, Any]) -> str:
    """``torch.mm 210 GFLOP/s, 1x1 convolution 410 GFLOP/s``, as measured in the record's rounds."""
    names = {"torch.mm": "torch.mm", "conv1x1": "1x1 convolution NHWC"}
    rates = record.get("rates", {})
    return ", ".join(
        f"{names[name]} {rate['flop_per_s'] / 1e9:.0f} GFLOP/s" for name, rate in rates.items()
    )


def text_table(suite: str, record: dict[str, Any]) -> str:
    """A record as aligned text."""
    header, body = rows(record)
    widths = [
        max(len(line[n]) for line in [header, *body] if len(line) == len(header))
        for n in range(len(header))
    ]
    widths[0] = max(widths[0], *(len(line[0]) for line in body)) if body else widths[0]
    lines = [
        f"{suite}: {record['title']}" + (f"   [{rates}]" if (rates := rates_line(record)) else "")
    ]
    for line in [header, *body]:
        cells = [
            line[0].ljust(widths[0]),
            *(v.rjust(w) for v, w in zip(line[1:], widths[1:], strict=False)),
        ]
        lines.append("  " + "  ".join(cells if len(line) == len(header) else [cells[0], *line[1:]]))
    return "\n".join(lines)


def markdown_table(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """The same as Markdown; short rows (reasons) span no columns and are filled up."""
    lines = ["| " + " | ".join(header) + " |", "|---" + "|---:" * (len(header) - 1) + "|"]
    lines += ["| " + " | ".join([*line, *[""] * (len(header) - len(line))]) + " |" for line in body]
    return "\n".join(lines)


def _median(peers: dict[str, Any], names: Sequence[str]) -> float | None:
    """The least median of the named peers that were measured."""
    return min((peers[name]["median"] for name in names if name in peers), default=None)


def _ms(seconds: float) -> str:
    ms = seconds * 1e3
    return f"{ms:.0f}" if ms >= 1000 else f"{ms:.1f}" if ms >= 10 else f"{ms:.2f}"


def _mib(count: int) -> str:
    return f"{count / 2**20:.1f}"
