"""Files of tensors: read safely, and the one model in them found, whatever it is wrapped in."""

from __future__ import annotations

import json
import logging
import re
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from diinn_fast.errors import CheckpointError
from diinn_fast.files import address

log = logging.getLogger("diinn_fast")

WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""Parts of names that come from a wrapper of a module: DataParallel and AveragedModel,
torch.compile, FSDP, activation checkpointing.
"""
BESIDE = frozenset({"sub", "div", "n_averaged"})
"""Buffers that the official training code and AveragedModel keep beside a model."""
AVERAGE = re.compile(r"(?<![a-z])(ema|swa|averaged?)(?![a-z])", re.IGNORECASE)
"""Says of a name that what lies under it are averaged weights, which are preferred."""
MOST_JSON = 1 << 20
"""Bytes of the largest config.json that is read."""


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by a model's own names, and what their file says of the model."""

    path: Path
    state: dict[str, Tensor]
    declared: dict[str, Any]
    """``arch``, ``mode``, ``init_q`` as far as the file's hyper-parameters or metadata say them."""
    hinted_mode: int | None
    """The mode in a ``config.json`` beside the file, which may be of another file."""

    def parts(self, name: str) -> list[str]:
        """Names of the tensors of the submodule ``name``, without it."""
        start = f"{name}."
        return [key.removeprefix(start) for key in self.state if key.startswith(start)]


@dataclass(frozen=True)
class Found:
    """A model within a file: a dict of tensors, and the prefix under which its names lie."""

    where: tuple[str, ...]
    prefix: str
    tensors: dict[str, Tensor]

    @property
    def rank(self) -> tuple[bool, bool]:
        """Averaged weights before others, then Lightning's ``state_dict`` before its copies."""
        averaged = any(AVERAGE.search(name) for name in (*self.where, self.prefix))
        return averaged, self.where == ("state_dict",)

    @property
    def state(self) -> dict[str, Tensor]:
        """The model's tensors, named without the prefix."""
        named = {
            name.removeprefix(self.prefix): value
            for name, value in self.tensors.items()
            if name.startswith(self.prefix)
        }
        return {name: value for name, value in named.items() if name not in BESIDE}


@torch.inference_mode(False)
def read_checkpoint(path: str | Path, anchors: Mapping[str, str]) -> Checkpoint:
    """The model in a ``.safetensors`` file, or in one of ``torch.save``: a state_dict at any depth
    of dicts, under any prefix. No code of the file is run.

    ``anchors`` name a tensor that a model surely has, by architecture. Of several models in the
    file the averaged one is taken; other tensors beside it are left aside, and named in a warning.
    Raises CheckpointError.
    """
    path = Path(path)
    content, metadata = _read(path)
    found = _choose(path, [*_find(content, anchors.values())])
    if found is None:
        raise CheckpointError(_not_found(path, content, anchors))
    # Training programs store the arguments of their model here; they tell mode 2 from mode 3.
    hyper_parameters = content.get("hyper_parameters") or {}
    if not isinstance(hyper_parameters, Mapping):
        raise CheckpointError(
            f"checkpoint {path} has hyper-parameters that are no table of names and values: "
            "save its state_dict alone"
        )
    declared = _declared(path, {**metadata, **hyper_parameters})
    return Checkpoint(path, found.state, declared, _hinted_mode(path))


@torch.inference_mode(False)
def fit(model: nn.Module, state: Mapping[str, Tensor], path: str | Path) -> None:
    """Load ``state`` into ``model`` (float32), naming the first key, shape or value that does not
    fit. Raises CheckpointError.
    """
    expected = model.state_dict()
    weights = {}
    # Missing keys first: they say most about what the file really is.
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
        weights[key] = _float32(state[key], key, path)
    # Assigned, not copied: the model may be on the meta device, without memory of its own.
    model.load_state_dict(weights, assign=True)


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json`` of a model folder. Raises CheckpointError."""
    try:
        with (folder / "config.json").open("rb") as file:
            # One byte more than allowed is enough to refuse, whatever the file's size.
            text = file.read(MOST_JSON + 1)
        if len(text) > MOST_JSON:
            raise ValueError(f"it has more than {MOST_JSON} bytes")
        config = json.loads(text)
        if not isinstance(config, dict):
            raise ValueError("it is not a JSON object")
    # Of a few kilobytes of brackets; it is no ValueError.
    except RecursionError:
        raise CheckpointError(
            f"model folder {folder} has an unusable config.json (it is nested too deeply)"
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"model folder {folder} has an unusable config.json ({error})"
        ) from error
    return config


# -- reading ---------------------------------------------------------------------------------------


def _read(path: Path) -> tuple[Mapping[Any, Any], dict[str, str]]:
    """What a file holds, and the metadata of a safetensors file."""
    if not path.is_file():
        raise CheckpointError(
            address(path)
            or f"checkpoint {path} does not exist: give the path of a .ckpt, .pt or .safetensors "
            "file"
        )
    metadata: dict[str, str] = {}
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                content: Any = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 it is no mapping
        else:
            _check_records(path)
            # Plain values and tensors alone: a pickle could otherwise run code of its author.
            content = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except (SafetensorError, OSError, RuntimeError, ValueError, EOFError, KeyError) as error:
        raise CheckpointError(
            f"checkpoint {path} cannot be read ({type(error).__name__}: {error}): fetch it "
            "again, or give a .ckpt, .pt or .safetensors file"
        ) from error
    # weights_only refuses with pickle.UnpicklingError, and damaged pickles raise anything
    except Exception as error:
        raise CheckpointError(
            f"checkpoint {path} holds more than tensors and plain values, or is damaged, and is "
            "not loaded: re-save its state_dict"
        ) from error
    return (content if isinstance(content, Mapping) else {}), metadata


def _check_records(path: Path) -> None:
    """Compare the checksums of a file of ``torch.save``, which ``torch.load`` does not."""
    if not zipfile.is_zipfile(path):
        return  # the format before torch 1.6, which has none
    try:
        with zipfile.ZipFile(path) as archive:
            packed = [r.filename for r in archive.infolist() if r.compress_type]
            # A small compressed record may unpack to more than the memory: it is not opened at all.
            damaged = None if packed else archive.testzip()
    except zipfile.BadZipFile as error:
        raise CheckpointError(
            f"checkpoint {path} cannot be read ({error}): fetch or save it again"
        ) from error
    if packed:
        raise CheckpointError(
            f"checkpoint {path} has compressed records, which torch.save does not make: save its "
            "state_dict again"
        )
    if damaged:
        raise CheckpointError(
            f"checkpoint {path} is damaged (the checksum of its record {damaged!r} differs): "
            "fetch or save it again"
        )


def _declared(path: Path, values: Mapping[Any, Any]) -> dict[str, Any]:
    """``arch``, ``mode`` and ``init_q`` as what they should be, also where they are texts."""
    declared: dict[str, Any] = {}
    for name, parse in (("arch", str), ("mode", _integer), ("init_q", _boolean)):
        if values.get(name) is None:
            continue
        try:
            declared[name] = parse(values[name])
        except (TypeError, ValueError):
            raise CheckpointError(
                f"checkpoint {path} declares {name}={values[name]!r}, which is no {name} of a "
                "model: save its state_dict alone"
            ) from None
    return declared


def _integer(value: Any) -> int:
    number = int(value)
    if isinstance(value, float) and value != number:
        raise ValueError
    return number


def _boolean(value: Any) -> bool:
    known = {"true": True, "1": True, "false": False, "0": False}
    text = str(value).lower()
    if text not in known:
        raise ValueError
    return known[text]


def _hinted_mode(path: Path) -> int | None:
    with suppress(CheckpointError, TypeError, ValueError):
        return _integer(read_config(path.parent).get("mode"))
    return None


# -- the model within a file -----------------------------------------------------------------------


def _find(content: Mapping[Any, Any], anchors: Collection[str]) -> Iterator[Found]:
    """Every place in nested dicts where a model lies."""
    for where, mapping in _mappings(content):
        named = {str(key): value for key, value in mapping.items() if isinstance(value, Tensor)}
        tensors = {_unwrapped(name): value for name, value in named.items()}
        if len(tensors) < len(named):
            tensors = named  # the wrapped and the bare module: two models
        for anchor in anchors:
            for name in tensors:
                prefix = name.removesuffix(anchor)
                if prefix != name and (prefix == "" or prefix.endswith(".")):
                    yield Found(where, prefix, tensors)


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _mappings(content: Mapping[Any, Any]) -> Iterator[tuple[tuple[str, ...], Mapping[Any, Any]]]:
    """The dict and all dicts within, each once, with the keys that lead to it."""
    waiting: list[tuple[tuple[str, ...], Mapping[Any, Any]]] = [((), content)]
    seen = {id(content)}
    while waiting:
        where, mapping = waiting.pop()
        yield where, mapping
        for key, value in mapping.items():
            if isinstance(value, Mapping) and id(value) not in seen:
                seen.add(id(value))
                waiting.append(((*where, str(key)), value))


def _choose(path: Path, found: list[Found]) -> Found | None:
    """The one that is meant; what else its dict holds is named."""
    if not found:
        return None
    # Averaged weights rank above those of the last step.
    best = max(each.rank for each in found)
    chosen, *others = [each for each in found if each.rank == best]
    # Copies of one model are no choice; different ones are, and only the user can make it.
    for other in others:
        if not _same(chosen.state, other.state):
            places = " and ".join(repr(_place(each)) for each in (chosen, other))
            raise CheckpointError(
                f"checkpoint {path} holds several models ({places}): save the one that is meant "
                "by itself"
            )
    prefixes = tuple(each.prefix for each in found if each.tensors is chosen.tensors)
    # What is neither the model nor known company of one is worth a word.
    beside = [k for k in chosen.tensors if k not in BESIDE and not k.startswith(prefixes)]
    if beside:
        log.warning(
            "checkpoint %s: left aside %d tensors that are not of the model: %s",
            path, len(beside), _few(beside),
        )  # fmt: skip
    return chosen


def _same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(v.equal(b[k]) for k, v in a.items())


def _place(found: Found) -> str:
    return ".".join([*found.where, found.prefix or "*"]).rstrip(".")


def _not_found(path: Path, content: Mapping[Any, Any], anchors: Mapping[str, str]) -> str:
    """Sentence that names what the file holds instead."""
    held = []
    for where, mapping in _mappings(content):
        # A few names per place tell the user which file this is.
        names = [str(key) for key, value in mapping.items() if isinstance(value, Tensor)]
        if names:
            place = f" in {'.'.join(where)!r}" if where else ""
            held.append(f"{len(names)} tensors{place} ({_few(names)})")
    if not held:
        return (
            f"checkpoint {path} is not a state_dict: it should map parameter names to tensors, and "
            f"holds {_few([str(key) for key in content]) or 'nothing by name'}"
        )
    wanted = " or ".join(repr(anchor) for anchor in dict.fromkeys(anchors.values()))
    kind = " or ".join(anchors)
    return (
        f"checkpoint {path} is not a {kind} model: it has no {wanted}; it holds "
        f"{'; '.join(held[:4])}"
    )


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


# -- values ----------------------------------------------------------------------------------------


def _float32(value: Tensor, key: str, path: str | Path) -> Tensor:
    """The tensor as weights; refuses by name whatever float32 cannot hold."""
    if value.is_meta:
        raise CheckpointError(f"checkpoint {path} has no values of {key!r}: it is a meta tensor")
    if not value.dtype.is_floating_point or value.layout != torch.strided:
        kind = "sparse" if value.layout != torch.strided else str(value.dtype).split(".")[-1]
        raise CheckpointError(
            f"checkpoint {path} does not fit: {key!r} is {kind}, and weights are dense "
            "floating-point numbers: save the model that was trained"
        )
    weights = value.detach().float()
    if torch.isfinite(weights).all():
        return weights
    # Finite in its own dtype, but not in float32: another fault, with another remedy.
    if torch.isfinite(value.detach().double()).all():
        raise CheckpointError(f"checkpoint {path} does not fit: {key!r} is beyond float32")
    raise CheckpointError(f"checkpoint {path} is damaged: {key!r} contains NaN or infinity")
