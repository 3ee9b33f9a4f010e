"""DIINN: encoder and implicit decoder, drop-in for the official class; checkpoints in and out."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import PyTorchModelHubMixin
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors.torch import save_file
from torch import Tensor, nn

from diinn_fast import hub
from diinn_fast.checkpoints import Checkpoint, fit, read_checkpoint, read_config
from diinn_fast.decoder import ImplicitDecoder
from diinn_fast.encoders import (
    ENCODERS,
    channels_of,
    detect_encoder,
    encoder_names,
    make_encoder,
    without_unused,
)
from diinn_fast.errors import CheckpointError, UpscaleError
from diinn_fast.files import address
from diinn_fast.formulation import modes_with
from diinn_fast.geometry import hr_size

log = logging.getLogger("diinn_fast")

BUNDLED = Path(__file__).parent / "weights"
DEFAULT_WEIGHTS = "edsr-baseline-mode3"
HUB = "hf://"
"""Beginning of a name that is looked up on the Hugging Face Hub."""
HUB_NAME = re.compile(rf"({HUB})?\w[\w.-]*/\w[\w.-]*(@\S+)?")
FILES = (".ckpt", ".pt", ".pth", ".bin", ".safetensors")
"""Ends of names that are files: where one is missing, the Hub would be asked for long, in vain."""
CONFIG = ("mode", "init_q", "encoder", "trained_scales")
"""Entries of a model folder's config.json: arguments of `DIINN`."""


class DIINN(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="diinn_fast",
    pipeline_tag="image-to-image",
    tags=["super-resolution", "image-super-resolution", "arbitrary-scale"],
    license="apache-2.0",
    paper_url="https://arxiv.org/abs/2210.12593",
):
    """Dual Interactive Implicit Neural Network: ``[B, 3, h, w]`` to ``[B, 3, H, W]`` at any real
    scale.

    Inputs and outputs are normalised ``(v - 0.5) / 0.5``; nothing is clamped. Nguyen & Beksi, WACV
    2023. ``encoder`` is a name of `diinn_fast.encoders.ENCODERS` (``"rdn"`` is the paper's), or a
    module ``[B, 3, h, w] -> [B, C, h, w]`` that states its channels C as ``out_channels`` or
    ``out_dim`` (64 otherwise). ``trained_scales`` are the least and the largest scale that it
    learns, beyond which the tools warn.
    """

    anchor = "decoder.K.0.0.weight"
    """A tensor by which a state_dict is known to be of this architecture."""

    def __init__(
        self,
        mode: int = 3,
        init_q: bool = False,
        encoder: str | nn.Module = "rdn",
        *,
        trained_scales: Sequence[float] = (1.0, 4.0),
    ) -> None:
        super().__init__()
        low, high = trained_scales
        self.trained_scales = (float(low), float(high))
        self.encoder = make_encoder(encoder)
        channels = channels_of(self.encoder)
        self.decoder = ImplicitDecoder(channels, mode=mode, init_q=init_q)

    def forward(
        self,
        x: Tensor,
        size: Sequence[int] | None = None,
        bsize: int | None = None,
        *,
        scale: float | Sequence[float] | None = None,
        backend: str | None = None,
    ) -> Tensor:
        """SR image ``[B, 3, H, W]`` at ``size`` (H, W), or at ``scale`` (one number, or one per
        axis).

        ``bsize`` limits the queries decoded at a time. Only one of ``size`` and ``scale`` may be
        given.
        """
        hr = hr_size(x.shape[-2:], size, scale)
        # a decoder in this one's place, or a hook, knows nothing of backends
        chosen = {} if backend is None else {"backend": backend}
        result: Tensor = self.decoder(self.encoder(x), hr, bsize, **chosen)
        return result

    def decode(self, features: Tensor, size: Sequence[int]) -> Tensor:
        """RGB ``[B, 3, H, W]`` of ``encoder``'s features at ``size``."""
        result: Tensor = self.decoder(features, size)
        return result

    def sample_pixels(self, features: Tensor, yx: Tensor, size: Sequence[int]) -> Tensor:
        """RGB ``[B, N, 3]`` of the HR pixels yx, int64 ``[B, N, 2]``; not in mode 4."""
        return self.decoder.sample_pixels(features, yx, size)

    @classmethod
    def from_checkpoint(cls, path: str | Path, *, mode: int | None = None) -> DIINN:
        """Model from a file: official Lightning checkpoint, state_dict (``.pt``) in whatever
        wrapping, or safetensors.

        Encoder, mode and init_q are inferred from the tensors, and checked against what the file
        says of them. Modes 2 and 3 have the same tensors: ``mode`` tells them apart where neither
        the file nor a ``config.json`` beside it does. Never executes code from the file. Raises
        CheckpointError.
        """
        return cls.from_tensors(read_checkpoint(path, {"DIINN": cls.anchor}), mode)

    @classmethod
    def from_tensors(cls, checkpoint: Checkpoint, mode: int | None = None) -> DIINN:
        """Model from what was read of a file; see `from_checkpoint`."""
        config = infer_architecture(checkpoint, mode)
        with torch.device("meta"):
            model = cls(**config)
        fit(model, without_unused(checkpoint.state), checkpoint.path)
        if mode is None:
            _warn_of_untold_mode(checkpoint)
        return model

    @classmethod
    def from_folder(cls, folder: Path, mode: int | None = None, **changes: Any) -> DIINN:
        """Model from a folder with ``config.json`` and ``model.safetensors``; ``changes`` replace
        entries of the config. Raises CheckpointError.
        """
        for name in ("config.json", "model.safetensors"):
            if not (folder / name).is_file():
                raise CheckpointError(
                    f"model folder {folder} has no {name}: save it again with save_pretrained"
                )
        config = read_config(folder)
        if mode is not None and config.get("mode", mode) != mode:
            raise CheckpointError(
                f"model folder {folder} declares mode={config['mode']}, not {mode}"
            )
        chosen = {name: config[name] for name in CONFIG if name in config} | changes
        if mode is not None:
            chosen["mode"] = mode
        try:
            # Without memory: an absurd width in a config must not allocate anything.
            with torch.device("meta"):
                model = cls(**chosen)
        except (ValueError, TypeError) as error:
            raise CheckpointError(
                f"model folder {folder} has an unusable config.json ({error})"
            ) from error
        file = folder / "model.safetensors"
        fit(model, read_checkpoint(file, {"DIINN": cls.anchor}).state, file)
        return model

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> DIINN:
        """Model by the name of a bundled one (``"edsr-baseline-mode3"``), from a folder or a file,
        or from the Hub: ``owner/name``, also as ``hf://owner/name`` or with ``@revision``.

        ``kwargs``: those of the constructor, ``map_location``, and of the Hub's client. Raises
        UpscaleError for an unknown name, CheckpointError for a damaged or unfitting model.
        """
        name = str(pretrained_model_name_or_path)
        device = kwargs.get("map_location", "cpu")
        changes = {key: value for key, value in kwargs.items() if key in CONFIG}
        if name in bundled_names():
            return cls.from_folder(BUNDLED / name, **changes).to(device)
        if name and Path(name).is_dir():
            return cls.from_folder(Path(name), **changes).to(device)
        if Path(name).is_file():
            return cls.from_checkpoint(name, mode=kwargs.get("mode")).to(device)
        if HUB_NAME.fullmatch(name) and Path(name).suffix not in FILES:
            return cls._from_hub(name, **kwargs)
        raise UpscaleError(unknown_model(name))

    @classmethod
    def _from_hub(cls, name: str, **kwargs: Any) -> DIINN:
        owner_and_name, _, revision = name.removeprefix(HUB).partition("@")
        if revision:
            kwargs["revision"] = revision
        try:
            # without a network, what was fetched before is found at once, and nothing else is
            if not kwargs.get("local_files_only") and not hub.reachable(owner_and_name, **kwargs):
                kwargs |= {"local_files_only": True, "force_download": False}
            with torch.inference_mode(False):
                return super().from_pretrained(owner_and_name, **kwargs)
        except LocalEntryNotFoundError as error:
            raise UpscaleError(
                f"weights {name!r} were not fetched before and the Hub cannot be reached: connect "
                "to the network, or give a model folder, a checkpoint file or a bundled name "
                f"({', '.join(bundled_names())})"
            ) from error
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            reason = str(error).splitlines()[0]
            raise UpscaleError(
                f"weights {name!r} cannot be fetched from the Hub: {reason}"
            ) from error

    @classmethod
    def _load_as_safetensor(
        cls, model: Any, model_file: str, map_location: str, strict: bool
    ) -> Any:
        """What PyTorchModelHubMixin calls: here every tensor must be there, fit, and be finite."""
        fit(model, read_checkpoint(model_file, {"DIINN": cls.anchor}).state, model_file)
        return model.to(map_location)

    _load_as_pickle = _load_as_safetensor

    @property
    def config(self) -> dict[str, Any]:
        """What ``config.json`` says: the arguments that build a model of this shape."""
        return {
            "mode": self.decoder.mode,
            "init_q": self.decoder.init_q,
            "encoder": getattr(self.encoder, "name", None),
            "trained_scales": list(self.trained_scales),
        }

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> str | None:
        """Write ``config.json`` and ``model.safetensors``; needs an encoder that was given by
        name.
        """
        if not self._can_be_rebuilt():
            raise ValueError(
                f"a model with this {type(self.encoder).__name__} and decoder cannot be rebuilt "
                "from a config: save model.state_dict() instead, or use an encoder by name "
                f"({encoder_names()})"
            )
        kwargs["config"] = self.config
        return super().save_pretrained(save_directory, **kwargs)

    def _save_pretrained(self, save_directory: Path) -> None:
        """What PyTorchModelHubMixin calls: the file says its mode, too."""
        state = {key: value.contiguous() for key, value in self.state_dict().items()}
        save_file(state, save_directory / "model.safetensors", self.metadata)

    @property
    def metadata(self) -> dict[str, str]:
        """What a safetensors file of this model says of it."""
        return {
            "format": "pt",
            "arch": "diinn",
            "mode": str(self.decoder.mode),
            "init_q": str(self.decoder.init_q).lower(),
        }

    def _can_be_rebuilt(self) -> bool:
        if type(self.encoder) not in ENCODERS.values():
            return False
        with torch.device("meta"):
            rebuilt = type(self)(**self.config).state_dict()
        state = self.state_dict()
        return state.keys() == rebuilt.keys() and all(
            state[key].shape == value.shape for key, value in rebuilt.items()
        )


def bundled_names() -> list[str]:
    """Names of the models that ship with the package."""
    return sorted(p.parent.name for p in BUNDLED.glob("*/config.json"))


def unknown_model(name: str) -> str:
    """What to say of a name that no model has."""
    if not name.startswith(HUB) and (said := address(name)):
        return said
    bundled = ", ".join(bundled_names()) or "none in this installation"
    return (
        f"weights {name!r} are unknown: give a checkpoint file, a model folder, a "
        f"bundled name ({bundled}), or {HUB}owner/name"
    )


def infer_architecture(checkpoint: Checkpoint, mode: int | None = None) -> dict[str, Any]:
    """Arguments of DIINN by a state_dict: mode, init_q and encoder.

    Modes 2 and 3 have the same tensors. What decides, in this order: ``mode``, what the file
    declares, a ``config.json`` beside it; else it is mode 3, the paper's final model.
    """
    path = checkpoint.path
    state = checkpoint.state
    declared = dict(checkpoint.declared)
    arch = declared.get("arch", "diinn").lower()
    if arch not in ("diinn", "imsisr"):
        raise CheckpointError(f"checkpoint {path} is of architecture {arch!r}, not DIINN")
    if mode is not None:
        if declared.get("mode", mode) != mode:
            raise CheckpointError(f"checkpoint {path} declares mode={declared['mode']}, not {mode}")
        declared["mode"] = mode

    # Shapes decide first; what is declared only chooses among the modes that they allow.
    modes = _possible_modes(checkpoint)
    likely = declared.get("mode", checkpoint.hinted_mode)
    found = {
        "mode": likely if likely in modes else modes[-1],
        "init_q": "decoder.first_layer.0.weight" in state,
    }
    for name, value in found.items():
        if declared.get(name, value) != value:
            said = "was asked for as" if mode is not None and name == "mode" else "declares"
            raise CheckpointError(
                f"checkpoint {path} {said} {name}={declared[name]} but its tensors are those of "
                f"{name}={value}"
            )

    # Each encoder knows its own tensors.
    encoder = detect_encoder(checkpoint.parts("encoder"))
    if encoder is None:
        raise CheckpointError(
            f"checkpoint {path} has an encoder that is none of {encoder_names()}: build the model "
            "as DIINN(encoder=...) and use its load_state_dict"
        )
    return {**found, "encoder": encoder}


def _warn_of_untold_mode(checkpoint: Checkpoint) -> None:
    """Say so where neither the tensors nor what is said of them tell the mode."""
    modes = _possible_modes(checkpoint)
    told = "mode" in checkpoint.declared or checkpoint.hinted_mode in modes
    if told or len(modes) == 1:
        return
    log.warning(
        "checkpoint %s may be of mode %s, whose tensors are alike, and does not say which: "
        "read as mode %d (mode=%d or --mode %d says otherwise)",
        checkpoint.path, " or ".join(map(str, modes)), modes[-1], modes[0], modes[0],
    )  # fmt: skip


def _possible_modes(checkpoint: Checkpoint) -> list[int]:
    """Modes whose tensors have these shapes; the last is the usual one."""
    state = checkpoint.state
    needed = ("decoder.K.1.0.weight", "decoder.last_layer.weight")
    for key in needed:
        if key not in state:
            raise CheckpointError(
                f"checkpoint {checkpoint.path} is not a DIINN model: it has no {key!r}"
            )
        if state[key].ndim != 4:
            raise CheckpointError(
                f"checkpoint {checkpoint.path} is not a DIINN model: {key!r} is not a convolution"
            )
    # Whether content enters every layer, and how wide the last kernel is, tells all modes but 2
    # from 3.
    hidden, last = (state[key].shape for key in needed)
    modes = modes_with(content=hidden[0] != hidden[1], kernel=last[-1])
    if not modes:
        raise CheckpointError(
            f"checkpoint {checkpoint.path} has the tensors of no known mode of DIINN"
        )
    return modes
