"""The paper's ablation:
``python -m diinn_fast.training.ablation --data PHOTOS --out DIR [--steps N]``.

Trains every formulation of the decoder (modes 1 to 3 with and without ``init_q``, and mode 4) from
the same seed, on the same crops, for as many steps; then writes ``DIR/ablation.md`` and
``ablation.csv`` with the PSNR on the validation photos. Runs that are there go on or are done
already, so the command can be stopped and given again. Scores on benchmark sets:
``diinn-fast eval --table ablation --runs DIR --data Set5``. Any option of training can be added.
"""

from __future__ import annotations

import argparse
import csv
import gc
import io
import json
import sys
from pathlib import Path

from diinn_fast.files import atomic_file
from diinn_fast.formulation import FORMULATIONS
from diinn_fast.training.run import train

VARIANTS = [
    (mode, init_q)
    for mode, formulation in FORMULATIONS.items()
    for init_q in (False, True)
    if not (formulation.needs_grid and init_q)
]


def variant_name(mode: int, init_q: bool) -> str:
    """The folder of a variant's run."""
    return f"mode{mode}" + ("-init_q" if init_q else "")


def main(arguments: list[str] | None = None) -> int:
    """Train all variants and write the table; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", required=True, help="photographs to train on: folder or training pack"
    )
    parser.add_argument("--out", required=True, type=Path, help="folder of the runs and the table")
    parser.add_argument("--val", help="photographs to validate on (default: some are held out)")
    parser.add_argument(
        "--steps", type=int, help="steps of every run (default: the configuration's)"
    )
    parser.add_argument(
        "--config", default="ablation", help="configuration of all runs (default: ablation)"
    )
    parser.add_argument(
        "--init-encoder", metavar="MODEL", help="every run takes that model's encoder"
    )
    options, rest = parser.parse_known_args(arguments)
    overrides = [f"--data.folder={options.data}"]
    overrides += [f"--data.val_folder={options.val}"] if options.val else []
    if options.steps:
        overrides += [
            f"--trainer.{name}={options.steps}" for name in ("max_steps", "val_check_interval")
        ]
    # The same seed and data for every variant: only the network differs.
    for mode, init_q in VARIANTS:
        own = [f"--model.mode={mode}", f"--model.init_q={str(init_q).lower()}"]
        print(f"{variant_name(mode, init_q)}:", flush=True)
        run = options.out / variant_name(mode, init_q)
        # A resumed run has its weights already.
        begun = (run / "last.ckpt").exists()
        _, stopped = train(
            run,
            options.config,
            [*overrides, *own, *rest],
            init_encoder=None if begun else options.init_encoder,
        )
        gc.collect()  # a trainer and its photographs refer to each other
        write_table(options.out)
        if stopped:
            print(f"{stopped}: the same command resumes")
            return 130
    print((options.out / "ablation.md").read_text())
    return 0


def write_table(folder: Path) -> None:
    """Both forms of the table, from the last validation of every run so far."""
    rows = []
    for mode, init_q in VARIANTS:
        log = folder / variant_name(mode, init_q) / "log.jsonl"
        records = (
            [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        )
        # The last validation; a run that has none yet has no row.
        scores = [record for record in records if "val/psnr" in record]
        if scores:
            rows.append(
                {"mode": mode, "init_q": "yes" if init_q else "no", "steps": scores[-1]["step"]}
            )
            rows[-1] |= {
                k.removeprefix("val/psnr_"): f"{v:.3f}"
                for k, v in scores[-1].items()
                if "psnr_x" in k
            }
    if not rows:
        return
    heads = list(rows[0])
    lines = [heads, ["---"] * len(heads), *([str(row.get(h, "")) for h in heads] for row in rows)]
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    table = io.StringIO()
    writer = csv.DictWriter(table, heads, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    note = (
        "RGB PSNR in dB on the validation photos, a border of scale + 6 pixels left out; "
        "averaged weights.\n\n"
    )
    for name, content in (("ablation.md", note + text + "\n"), ("ablation.csv", table.getvalue())):
        with atomic_file(folder / name, overwrite=True) as file:
            file.write(content.encode())


if __name__ == "__main__":
    sys.exit(main())
