"""DIINN: encoder and implicit decoder, drop-in for the official class; checkpoints in and out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import PyTorchModelHubMixin
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from diinn_fast.decoder import ImplicitDecoder
from diinn_fast.encoders import ENCODERS, detect_encoder, encoder_names, make_encoder
from diinn_fast.errors import CheckpointError
from diinn_fast.formulation import modes_with
from diinn_fast.geometry import hr_size

BUNDLED = Path(__file__).parent / "weights"
DEFAULT_WEIGHTS = "edsr-baseline-mode3"
CHANNELS = 64


class DIINN(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="diinn_fast",
    tags=["super-resolution"],
    license="apache-2.0",
):
    """Dual Interactive Implicit Neural Network: ``[B, 3, h, w]`` to ``[B, 3, H, W]`` at any real
    scale.

    Inputs and outputs are normalised ``(v - 0.5) / 0.5``; nothing is clamped. Nguyen & Beksi, WACV
    2023. ``encoder`` is a name of `diinn_fast.encoders.ENCODERS` (``"rdn"`` is the paper's), or a
    module ``[B, 3, h, w] -> [B, C, h, w]`` that states its channels C as ``out_channels`` (64
    otherwise).
    """

    def __init__(
        self, mode: int = 3, init_q: bool = False, encoder: str | nn.Module = "rdn"
    ) -> None:
        super().__init__()
        self.encoder = make_encoder(encoder)
        channels = getattr(self.encoder, "out_channels", CHANNELS)
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
        return self.decoder(self.encoder(x), hr, bsize, backend=backend)

    def decode(self, features: Tensor, size: Sequence[int]) -> Tensor:
        """RGB ``[B, 3, H, W]`` of ``encoder``'s features at ``size``."""
        return self.decoder(features, size)

    def sample_pixels(self, features: Tensor, yx: Tensor, size: Sequence[int]) -> Tensor:
        """RGB ``[B, N, 3]`` of the HR pixels yx, int64 ``[B, N, 2]``; not in mode 4."""
        return self.decoder.sample_pixels(features, yx, size)

    @classmethod
    def from_checkpoint(cls, path: str | Path) -> DIINN:
        """Model from a file: official Lightning checkpoint, plain state_dict (``.pt``), or
        safetensors.

        Encoder, mode and init_q are inferred from the tensors, and checked against the file's
        hyper-parameters if it has any. Never executes code from the file. Raises CheckpointError.
        """
        state, declared = read_checkpoint(path)
        mode, init_q, encoder = infer_architecture(state, declared, path)
        with torch.device("meta"):
            model = cls(mode=mode, init_q=init_q, encoder=encoder)
        fit(model, state, path)
        return model

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> DIINN:
        """Model by the name of a bundled one (``"edsr-baseline-mode3"``), from a folder, or from
        the Hub.
        """
        name = str(pretrained_model_name_or_path)
        if (BUNDLED / name / "config.json").is_file() and name:
            pretrained_model_name_or_path = BUNDLED / name
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    @classmethod
    def _load_as_safetensor(
        cls, model: Any, model_file: str, map_location: str, strict: bool
    ) -> Any:
        """What PyTorchModelHubMixin calls: here every tensor must be there, fit, and be finite."""
        fit(model, read_checkpoint(model_file)[0], model_file)
        return model.to(map_location)

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> str | None:
        """Write ``config.json`` and ``model.safetensors``; needs an encoder that was given by
        name.
        """
        if type(self.encoder) not in ENCODERS.values():
            raise ValueError(
                f"an encoder of class {type(self.encoder).__name__} cannot be rebuilt from a "
                "config: save model.state_dict() instead, or use an encoder by name "
                f"({encoder_names()})"
            )
        return super().save_pretrained(save_directory, **kwargs)


def bundled_names() -> list[str]:
    """Names of the models that ship with the package."""
    return sorted(p.parent.name for p in BUNDLED.glob("*/config.json"))


def read_checkpoint(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by the model's own key names, and the file's hyper-parameters (empty if it has
    none).
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(
            f"checkpoint {path} does not exist: give the path of a .ckpt, .pt or .safetensors file"
        )
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, ValueError, EOFError, KeyError) as error:
        raise CheckpointError(
            f"checkpoint {path} cannot be read (truncated or not a checkpoint?): {error}"
        ) from error
    # weights_only refuses with pickle.UnpicklingError, and damaged pickles raise anything
    except Exception as error:
        raise CheckpointError(
            f"checkpoint {path} holds more than tensors and plain values, or is damaged, and is "
            "not loaded: "
            "re-save its state_dict"
        ) from error
    declared: dict[str, Any] = {}
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        declared = dict(content.get("hyper_parameters") or {})
        content = content["state_dict"]
    elif isinstance(content, Mapping) and isinstance(content.get("ema"), Mapping):
        content = content["ema"]  # a run of version 0.1
    if (
        not isinstance(content, Mapping)
        or not all(isinstance(v, Tensor) for v in content.values())
        or not content
    ):
        raise CheckpointError(
            f"checkpoint {path} is not a state_dict: it should map parameter names to tensors"
        )
    state = {str(k): v for k, v in content.items() if k not in ("sub", "div")}
    if all(k.startswith("net.") for k in state):
        state = {k.removeprefix("net."): v for k, v in state.items()}
    return state, declared


def infer_architecture(
    state: Mapping[str, Tensor], declared: Mapping[str, Any], path: str | Path
) -> tuple[int, bool, str]:
    """(mode, init_q, encoder) of a state_dict.

    Modes 2 and 3 have the same tensors: the hyper-parameters decide, else mode 3, the paper's final
    model.
    """
    arch = str(declared.get("arch", "diinn")).lower()
    if arch not in ("diinn", "imsisr"):
        raise CheckpointError(f"checkpoint {path} is of architecture {arch!r}, not DIINN")
    needed = ("decoder.K.0.0.weight", "decoder.K.1.0.weight", "decoder.last_layer.weight")
    if missing := [k for k in needed if k not in state]:
        raise CheckpointError(f"checkpoint {path} is not a DIINN model: it has no {missing[0]!r}")
    init_q = "decoder.first_layer.0.weight" in state
    hidden = state["decoder.K.1.0.weight"].shape
    if len(hidden) != 4 or state["decoder.last_layer.weight"].ndim != 4:
        raise CheckpointError(
            f"checkpoint {path} is not a DIINN model: 'decoder.K.1.0.weight' is not a convolution"
        )
    kernel = state["decoder.last_layer.weight"].shape[-1]
    modes = modes_with(content=hidden[0] != hidden[1], kernel=kernel)
    if not modes:
        raise CheckpointError(f"checkpoint {path} has the tensors of no known mode of DIINN")
    mode = declared["mode"] if declared.get("mode") in modes else modes[-1]
    for name, found in (("mode", mode), ("init_q", init_q)):
        if declared.get(name, found) != found:
            raise CheckpointError(
                f"checkpoint {path} declares {name}={declared[name]} but its tensors are those of "
                f"{name}={found}"
            )
    keys = [key.removeprefix("encoder.") for key in state if key.startswith("encoder.")]
    encoder = detect_encoder(keys)
    if encoder is None:
        raise CheckpointError(
            f"checkpoint {path} has an encoder that is none of {encoder_names()}: build the model "
            "as DIINN(encoder=...) and use its load_state_dict"
        )
    return mode, init_q, encoder


def fit(model: nn.Module, state: Mapping[str, Tensor], path: str | Path) -> None:
    """Load ``state`` into ``model`` (float32), naming the first key or shape that does not fit, or
    is not finite.
    """
    expected = model.state_dict()
    for key in [*expected, *state]:
        if key not in state:
            raise CheckpointError(f"checkpoint {path} does not fit: {key!r} is missing")
        if key not in expected:
            raise CheckpointError(
                f"checkpoint {path} does not fit: {key!r} is not part of the model"
            )
        if state[key].shape != expected[key].shape:
            shapes = f"{list(state[key].shape)} instead of {list(expected[key].shape)}"
            raise CheckpointError(f"checkpoint {path} does not fit: {key!r} is {shapes}")
        if not torch.isfinite(state[key]).all():
            raise CheckpointError(f"checkpoint {path} is damaged: {key!r} contains NaN or infinity")
    model.load_state_dict({k: v.float() for k, v in state.items()}, assign=True)
