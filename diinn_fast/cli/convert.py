"""``diinn-fast convert``: a checkpoint to a model folder, without pickle."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from diinn_fast.cli.common import Refused, make_parser, messages
from diinn_fast.loading import load_weights
from diinn_fast.model import DIINN

EXAMPLE = "  diinn-fast convert official.ckpt my-model --fp16\n"


def main(arguments: list[str]) -> int:
    """The command; returns its exit status."""
    parser = make_parser(
        "convert",
        "[options] CHECKPOINT FOLDER",
        "Turn a checkpoint (official Lightning, state_dict, safetensors) or a model folder into a "
        "model folder with "
        "config.json and model.safetensors.",
        EXAMPLE,
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT")
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="model folder to write")
    parser.add_argument(
        "--mode", type=int, choices=(2, 3), help="of a file that does not say which of the two"
    )
    parser.add_argument(
        "--fp16", action="store_true", help="store 16 bits per number: half the size"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the model in an existing folder"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="print errors only")
    options = parser.parse_args(arguments)
    if (options.folder / "model.safetensors").exists() and not options.overwrite:
        raise Refused(
            f"folder {options.folder} already has a model: pass --overwrite or choose another name"
        )
    # Loading first: a damaged checkpoint must not leave a folder behind.
    with messages(logging.ERROR if options.quiet else logging.WARNING):
        model = load_weights(options.checkpoint, mode=options.mode)
    try:
        write_folder(model, options.folder, fp16=options.fp16)
    except OSError as error:
        raise Refused(
            f"folder {options.folder} cannot be written ({error.strerror}): choose another one"
        ) from None
    if not options.quiet:
        megabytes = (options.folder / "model.safetensors").stat().st_size / 1e6
        print(
            f"{options.checkpoint} -> {options.folder} (mode {model.decoder.mode}, "
            f"{megabytes:.1f} MB)"
        )
    return 0


def write_folder(model: DIINN, folder: Path, *, fp16: bool) -> None:
    """``config.json`` and ``model.safetensors``, each complete or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    # Beside the final files, so that a rename within one file system finishes the work.
    with tempfile.TemporaryDirectory(prefix=".diinn-", dir=folder) as name:
        temporary = Path(name)
        model.save_pretrained(temporary)
        if fp16:
            state = {key: value.half().contiguous() for key, value in model.state_dict().items()}
            # Rounded to infinity such a model would give black or white pictures.
            if large := [key for key, value in state.items() if not torch.isfinite(value).all()]:
                raise Refused(f"{large[0]!r} has values beyond fp16: convert without --fp16")
            save_file(state, temporary / "model.safetensors", model.metadata)
        # The package safetensors makes its files private, whatever the umask.
        shutil.copymode(temporary / "config.json", temporary / "model.safetensors")
        for file in ("model.safetensors", "config.json"):
            os.replace(temporary / file, folder / file)
