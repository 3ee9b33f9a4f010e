"""The files of a GPU run: one record a case, merged with what is there after every peer, so that
nothing is lost when a step is stopped and a later command adds to an earlier one's.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench import machine
from bench.cases import Case
from bench.table import text_table


class Book:
    """Reads and writes FOLDER/<suite>.json, in the format of ``pytest bench --save``, and
    FOLDER/run/. One process writes at a time.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.folder = Path(options.out)
        self.device: str = options.device
        self.run: str = options.run
        self.dry: bool = options.dry
        (self.folder / "run").mkdir(parents=True, exist_ok=True)

    def record(self, suite: str, case: Case) -> dict[str, Any]:
        """The case's record as it stands."""
        records: list[dict[str, Any]] = self._load(suite)["records"]
        for record in records:
            if record["name"] == case.name:
                return record
        description = {
            "case": case.describe(),
            "name": case.name,
            "title": case.title,
            "size": list(case.size),
        }
        return {**description, "peers": {}, "left_out": {}}

    def add(
        self,
        suite: str,
        case: Case,
        peer: str,
        entry: dict[str, Any],
        rates: dict[str, Any] | None = None,
    ) -> None:
        """Store what was measured of a peer, in place of what an earlier run measured of it, and
        the device's own rates in the same rounds.
        """
        record = self.record(suite, case)
        if rates:
            record["rates"] = rates
        record["peers"][peer] = {**entry, "run": self.run}
        record["left_out"].pop(peer, None)
        self._save(suite, record)

    def leave_out(self, suite: str, case: Case, peer: str, why: str) -> None:
        """Store why a peer has no figures; those of an earlier run are no longer true."""
        record = self.record(suite, case)
        record["peers"].pop(peer, None)
        record["left_out"][peer] = why
        self._save(suite, record)
        print(f"{peer} on {case.name}: {why}", flush=True)

    def show(self, suite: str, case: Case) -> None:
        """Print the table of a case."""
        print(text_table(suite, self.record(suite, case)), flush=True)

    def add_values(self, name: str, values: dict[str, Any]) -> None:
        """Merge plain values into FOLDER/run/<name>.json."""
        path = self.folder / "run" / f"{name}.json"
        found = json.loads(path.read_text()) if path.exists() else {}
        self._write(path, found | values)

    def cases(self, cases: Sequence[Case]) -> list[Case]:
        """On this device; a dry run takes the smallest sizes that mean the same."""
        found = [replace(case, device=self.device) for case in cases]
        if self.dry:
            found = [
                replace(c, lr=(3, 4), scale=min(c.scale, 3), batch=min(c.batch, 2)) for c in found
            ]
        return list(dict.fromkeys(found))

    def _save(self, suite: str, record: dict[str, Any]) -> None:
        content = self._load(suite)
        others = [r for r in content["records"] if r["name"] != record["name"]]
        ordered = sorted([*others, record], key=lambda r: (r["case"]["lr"], r["case"]["scale"]))
        about = machine.facts(self.device) | {"gpu": gpu_facts(), "run": self.run}
        content |= about | {"records": ordered}
        self._write(self.folder / f"{suite}.json", content)

    def _load(self, suite: str) -> dict[str, Any]:
        path = self.folder / f"{suite}.json"
        if not path.exists():
            command = {"command": "python -m bench.gpu", "dtype": "as named", "full": False}
            return {**command, "suite": suite, "records": []}
        content: dict[str, Any] = json.loads(path.read_text())
        if content["device"] != (here := machine.device_name(self.device)):
            raise SystemExit(
                f"{path} is of {content['device']}, this is {here}: choose another --out"
            )
        return content

    def _write(self, path: Path, content: Any) -> None:
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(content, indent=1) + "\n")
        partial.replace(path)


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
