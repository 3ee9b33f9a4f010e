"""Run file: what another machine needs to go on with a run, small enough to carry (13 MiB with
EDSR-baseline).

It has the weights (float32), how far their average is from them (float16), step, schedule and
configuration, as safetensors; it leaves out the optimiser's moments. Going on from it is therefore
not exact: the moments start from nothing, and the rate rises again over ``module.REWARM`` steps.
The data go on exactly: they depend on the step number alone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from diinn_fast.errors import CheckpointError, UnfinishedError
from diinn_fast.files import atomic_file, explain

FORMAT = "diinn_fast run 1"
PLAIN = (
    "epoch",
    "global_step",
    "pytorch-lightning_version",
    "loops",
    "callbacks",
    "lr_schedulers",
    "hyper_parameters",
)


def write_run(folder: Path, path: Path) -> int:
    """Write the state of the run in ``folder`` to ``path``; returns the bytes of it. Raises
    CheckpointError.
    """
    if path.suffix != ".safetensors":
        raise CheckpointError(f"a run file is a .safetensors file: {path} is not")
    last = folder / "last.ckpt"
    if not last.is_file():
        raise CheckpointError(f"{folder} holds no run: {last} does not exist")
    checkpoint = torch.load(last, map_location="cpu", weights_only=True)
    average = checkpoint["state_dict"]
    weights = checkpoint["current_model_state"]
    # The average is close to the weights: 16 bits of their difference say as much.
    tensors = {f"weights.{k}": v.contiguous() for k, v in weights.items()}
    tensors |= {f"average.{k}": (average[k] - v).half().contiguous() for k, v in weights.items()}
    state = {k: checkpoint[k] for k in PLAIN}
    state["groups"] = [
        group for optimizer in checkpoint["optimizer_states"] for group in optimizer["param_groups"]
    ]
    state["averaged"] = int(checkpoint["averaging_state"]["n_averaged"])
    config = yaml.safe_load((folder / "config.yaml").read_text())
    metadata = {
        "format": FORMAT,
        "state": json.dumps(state),
        "config": json.dumps(plain_config(config)),
    }
    try:
        with atomic_file(path, overwrite=True) as file:
            file.write(save(tensors, metadata))
    except OSError as error:
        raise UnfinishedError(explain(path, error)) from error
    return path.stat().st_size


def read_run(path: str | Path) -> dict[str, Any]:
    """A checkpoint for Lightning from a run file, with the optimiser's moments empty. Raises
    CheckpointError.
    """
    metadata, tensors = _read(path)
    state = json.loads(metadata["state"])
    weights = {
        k.removeprefix("weights."): v for k, v in tensors.items() if k.startswith("weights.")
    }
    # Moments would triple the file; they are gathered again while the rate warms up.
    step = state["global_step"]
    return {
        **{k: state[k] for k in PLAIN},
        "current_model_state": weights,
        "state_dict": {k: v + tensors[f"average.{k}"].float() for k, v in weights.items()},
        "averaging_state": {"n_averaged": torch.tensor(state["averaged"])},
        "optimizer_states": [
            {"state": {}, "param_groups": [{**group, "lr": 0.0} for group in state["groups"]]}
        ],
        "moments_from": step,
    }


def read_config(path: str | Path) -> dict[str, Any]:
    """Configuration of the run in a run file."""
    return plain_config(json.loads(_read(path)[0]["config"]))


def _read(path: str | Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise CheckpointError(
                    f"{path} is not a run file: diinn-fast train --export-run writes one"
                )
            return metadata, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 it is no mapping
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"run file {path} cannot be read: {error}") from error


def plain_config(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a configuration that is plain values: nothing in a run file names a class to be
    made.
    """
    return {
        group: {k: v for k, v in values.items() if v is not None and not _names_class(v)}
        if isinstance(values, dict)
        else values
        for group, values in config.items()
    }


def _names_class(value: Any) -> bool:
    if isinstance(value, dict):
        return True
    return isinstance(value, list) and any(_names_class(v) for v in value)
