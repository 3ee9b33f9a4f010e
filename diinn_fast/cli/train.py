"""``diinn-fast train``: train a model on a folder of photographs, or go on with a run."""

from __future__ import annotations

import argparse
import importlib.util
import os
from pathlib import Path

from diinn_fast.cli.common import Refused, make_parser
from diinn_fast.data import write_pack
from diinn_fast.errors import DataError
from diinn_fast.files import parse_size

EXAMPLE = """\
  diinn-fast train --config paper --data DIV2K --out runs/paper
  diinn-fast train --data PHOTOS --out runs/edsr --steps 40000 --model.lr 1e-4
  diinn-fast train --out runs/edsr                                resume
  torchrun --nproc-per-node 4 -m diinn_fast train --config paper --data DIV2K --out runs/paper

in stretches on different machines:
  diinn-fast train --data PHOTOS --pack photos.tar --pack-size 40MiB
  diinn-fast train --from-run run.safetensors --data photos.tar --minutes 20 \\
      --export-run run.safetensors

Every other option of a configuration can be given by its name, such as --model.schedule cosine or
--trainer.accumulate_grad_batches 2; --print_config shows all of them."""


def main(arguments: list[str]) -> int:
    """The command; returns its exit status."""
    options, rest = make_train_parser().parse_known_args(arguments)
    try:
        if options.pack:
            return _pack(options.data, options.pack, options.pack_size)
        for name in ("lightning", "jsonargparse", "tensorboard"):
            if importlib.util.find_spec(name) is None:
                raise Refused(f"training needs {name}: pip install 'diinn_fast[train]'")
        return _train(options, rest)
    except DataError as error:
        raise Refused(str(error)) from error


def make_train_parser() -> argparse.ArgumentParser:
    """The options of ``train`` beside those of the configuration."""
    parser = make_parser(
        "train",
        "--data FOLDER [--config NAME] [--out RUN] [options]",
        "Train a model. RUN gets last.ckpt, best.ckpt, config.yaml, log.jsonl, TensorBoard's "
        "files and model/, a model "
        "folder for upscale. An existing run is resumed.",
        EXAMPLE,
    )
    parser.add_argument(
        "--data", metavar="FOLDER", help="photographs: a folder (DIV2K's too), or a training pack"
    )
    parser.add_argument(
        "--val", metavar="FOLDER", help="photographs to validate on (default: some are held out)"
    )
    parser.add_argument(
        "--config", metavar="NAME", help="paper, edsr-baseline (default), quick, or a YAML file"
    )
    parser.add_argument(
        "--out", metavar="RUN", type=Path, help="folder of the run (default: runs/NAME)"
    )
    parser.add_argument("--steps", metavar="N", help="train until step N")
    parser.add_argument(
        "--minutes", metavar="M", help="stop after so many minutes; the run can go on later"
    )
    parser.add_argument("--precision", metavar="P", help="32-true, 16-mixed or bf16-mixed")
    parser.add_argument("--seed", metavar="N", help="of first weights and crops")
    parser.add_argument(
        "--init", metavar="MODEL", help="weights to start from: bundled name, checkpoint or folder"
    )
    parser.add_argument(
        "--init-encoder", metavar="MODEL", help="take that model's encoder; the decoder is new"
    )
    parser.add_argument("--from-run", metavar="FILE", type=Path, help="go on from a run file")
    parser.add_argument(
        "--export-run", metavar="FILE", type=Path, help="write a run file at the end"
    )
    parser.add_argument(
        "--pack",
        metavar="FILE",
        type=Path,
        help="write a training pack of the photographs; no training",
    )
    parser.add_argument(
        "--pack-size", metavar="SIZE", default="40MiB", help="most that the pack may take (40MiB)"
    )
    return parser


def _train(options: argparse.Namespace, rest: list[str]) -> int:
    from diinn_fast.training.portable import write_run
    from diinn_fast.training.run import DEFAULT, train

    out = options.out or Path("runs") / Path(options.config or DEFAULT).stem
    # Short options stand for entries of the configuration, so that both mean the same.
    short = {
        "--data.folder": options.data,
        "--data.val_folder": options.val,
        "--trainer.max_steps": options.steps,
        "--trainer.precision": options.precision,
        "--checkpoints.stop_after": options.minutes,
        "--seed_everything": options.seed,
        "--data.seed": options.seed,
    }
    overrides = [f"{name}={value}" for name, value in short.items() if value is not None]
    if options.minutes is None:
        # The limit of an earlier command, which the run has kept, does not hold for this one.
        overrides.append("--checkpoints.stop_after=null")
    try:
        step, stopped = train(
            out,
            options.config,
            [*overrides, *rest],
            options.from_run,
            options.init,
            options.init_encoder,
        )
    # Configurations are checked before the first step: nothing has begun.
    except ValueError as error:
        raise Refused(str(error)) from error
    if int(os.environ.get("RANK", 0)) > 0:  # the first of several processes speaks for all
        return 0
    if stopped:
        print(f"stopped at step {step}, {stopped}: diinn-fast train --out {out} resumes")
    else:
        model = out / "model"
        print(
            f"trained {step} steps: {model if model.exists() else out / 'last.ckpt'} is the model"
        )
    if options.export_run:
        size = write_run(out, options.export_run)
        print(f"wrote {options.export_run}, {size / 2**20:.1f} MiB")
    return 130 if stopped == "interrupted" else 0


def _pack(source: str | None, path: Path, size: str) -> int:
    if source is None:
        raise Refused("no photographs to pack: give --data FOLDER")
    try:
        most = parse_size(size)
    except ValueError as error:
        raise Refused(f"--pack-size: {error}") from error
    print(f"wrote {path}, {write_pack(source, path, most) / 2**20:.1f} MiB")
    return 0
