"""A training run: configuration, Lightning's trainer, going on where a run stopped, and what is
left at the end.
"""

from __future__ import annotations

import json
import logging
import os
import warnings
from argparse import ArgumentError
from importlib import resources
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger

from diinn_fast.encoders import use_fast_weights
from diinn_fast.files import atomic_file
from diinn_fast.model import DIINN
from diinn_fast.training.averaging import EMA
from diinn_fast.training.checkpoints import AtomicCheckpointIO, Checkpoints
from diinn_fast.training.datamodule import PhotoData
from diinn_fast.training.logs import JsonLines
from diinn_fast.training.models import start_from, take_encoder
from diinn_fast.training.module import SRModule
from diinn_fast.training.portable import read_config

CONFIGS = resources.files("diinn_fast.training") / "configs"
DEFAULT = "edsr-baseline"


class TrainCLI(LightningCLI):
    """Lightning's command line over SRModule, PhotoData, EMA and Checkpoints; everything of a run
    is in ``out``.
    """

    def __init__(self, out: Path, arguments: list[str]) -> None:
        self.out = out
        super().__init__(
            SRModule,
            PhotoData,
            run=False,
            args=arguments,
            save_config_callback=None,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            parser_kwargs={"prog": "diinn-fast train", "exit_on_error": False},
            # Steps count, not epochs: crops are drawn without end.
            trainer_defaults={
                "max_epochs": -1,
                "num_sanity_val_steps": 0,
                "check_val_every_n_epoch": None,
                "val_check_interval": 500,
                "enable_model_summary": False,
                "use_distributed_sampler": False,
            },
        )

    def add_arguments_to_parser(self, parser: Any) -> None:
        """The groups ``ema`` and ``checkpoints`` of the configuration."""
        parser.add_lightning_class_args(EMA, "ema")
        parser.add_lightning_class_args(Checkpoints, "checkpoints")

    def instantiate_trainer(self, **_: Any) -> L.Trainer:
        """Lightning's trainer with our log, checkpoints, and the processes of torchrun."""
        config = self.config_init["trainer"]
        # torchrun, if it has started us, knows how many processes there are.
        if (ranks := int(os.environ.get("WORLD_SIZE", 1))) > 1:
            config["devices"] = int(os.environ["LOCAL_WORLD_SIZE"])
            config["num_nodes"] = ranks // config["devices"]
            config["strategy"] = "ddp" if config["strategy"] == "auto" else config["strategy"]
        if isinstance(every := config["val_check_interval"], int) and config["max_steps"] > 0:
            # A run that is shorter than the interval is validated at its end.
            config["val_check_interval"] = min(every, config["max_steps"])
        logger = [
            JsonLines(self.out / "log.jsonl"),
            TensorBoardLogger(self.out, "tensorboard", version=""),
        ]
        return super().instantiate_trainer(
            default_root_dir=str(self.out),
            logger=logger,
            plugins=[AtomicCheckpointIO(), *(config["plugins"] or [])],
        )


def config_names() -> list[str]:
    """Names of the configurations that come with the package."""
    return sorted(
        path.name.removesuffix(".yaml") for path in CONFIGS.iterdir() if path.name.endswith(".yaml")
    )


def config_path(name: str) -> str:
    """Path of a configuration given by name or path. Raises ValueError."""
    if Path(name).is_file():
        return name
    if name not in config_names():
        raise ValueError(
            f"no configuration {name!r}: give a YAML file, or one of {', '.join(config_names())}"
        )
    return str(CONFIGS / f"{name}.yaml")


def train(
    out: Path,
    config: str | None = None,
    overrides: list[str] | None = None,
    from_run: Path | None = None,
    init: str | None = None,
    init_encoder: str | None = None,
) -> tuple[int, str]:
    """Train into folder ``out``, or go on with what is there; returns the step reached and why it
    ended early, or "".

    ``config`` is a configuration by name or path; without one an existing run's own, that of
    ``from_run`` (a run file to go on from), or the default is taken. ``overrides`` are further
    arguments in Lightning's form, ``--model.lr=1e-4``. ``init`` names weights that a new run starts
    from; ``init_encoder`` those of which it takes the encoder alone. Afterwards ``out/model`` is a
    model folder with the averaged weights.
    """
    last = out / "last.ckpt"
    saved = out / "config.yaml"
    starts = {"--from-run": from_run, "--init": init, "--init-encoder": init_encoder}
    given = [option for option, value in starts.items() if value]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} exclude each other: give one of them")
    if last.exists() and given:
        raise ValueError(
            f"{out} holds a run already: go on with it without {given[0]}, or choose another --out"
        )
    _quieten()
    try:
        chosen = _choose_config(config, saved, from_run)
        cli = TrainCLI(out, [f"--config={chosen}", *(overrides or [])])
    except ArgumentError as error:
        raise ValueError(str(error)) from error
    if cli.trainer.max_steps < 1:
        raise ValueError("how long to train is not stated: give --steps")
    # One process writes for all.
    if cli.trainer.is_global_zero:
        out.mkdir(parents=True, exist_ok=True)
        with atomic_file(saved, overwrite=True) as file:
            file.write(cli.parser.dump(cli.config, skip_unset=False).encode())
    # A run in the folder comes first: nobody trains twice by mistake.
    source = last if last.exists() else from_run
    if init is not None:
        start_from(cli.model.net, init)
    if init_encoder is not None:
        take_encoder(cli.model.net, init_encoder)
    use_fast_weights(cli.model.net.encoder)
    cli.trainer.fit(cli.model, cli.datamodule, ckpt_path=source and str(source), weights_only=True)
    if cli.trainer.is_global_zero:
        _save_model(cli, last, out / "model")
    return cli.trainer.global_step, cli.config_init["checkpoints"].stopped


def _choose_config(config: str | None, saved: Path, from_run: Path | None) -> str:
    """A path or JSON text: what was asked for, else what the run has, else the default."""
    if config is not None:
        return config_path(config)
    if saved.is_file():
        return str(saved)
    if from_run is not None:
        return json.dumps(read_config(from_run))
    return config_path(DEFAULT)


def _save_model(cli: TrainCLI, last: Path, folder: Path) -> None:
    """The averaged weights as a model folder; other architectures keep to checkpoints."""
    if not last.exists() or cli.model.hparams["arch"] != "diinn":
        return
    model = DIINN.from_checkpoint(last)
    model.trained_scales = cli.datamodule.trained_scales
    model.save_pretrained(folder)


def run_config(out: Path) -> dict[str, Any]:
    """Configuration that the run in ``out`` was last trained with."""
    result: dict[str, Any] = yaml.safe_load((out / "config.yaml").read_text())
    return result


def _quieten() -> None:
    """Leave out what Lightning says about itself, and advice that does not apply here."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*num_workers",
        ".*args parameter is intended",
        ".*Grad strides do not match",
        ".*LeafSpec",
    ):
        warnings.filterwarnings("ignore", message)
