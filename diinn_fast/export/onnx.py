"""ONNX files of a model, each checked before it takes its name."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diinn_fast import __version__
from diinn_fast.errors import ExportError
from diinn_fast.export.modules import DecodeWindow, FixedScale, Project
from diinn_fast.model import DIINN

OPSET = 18


def export_any_scale(model: DIINN, folder: Path) -> tuple[Path, Path]:
    """Write ``project.onnx`` and ``decode.onnx``: any scale, any window, all sizes free.

    Raises:
        ExportError: packages are missing, or the model has mode 4 or init_q.
    """
    # The exporter wants upper bounds: no picture in memory has more than a million pixels a side.
    h = torch.export.Dim("h", min=1, max=1 << 20)
    w = torch.export.Dim("w", min=1, max=1 << 20)
    project = folder / "project.onnx"
    _write(
        Project(model),
        {"picture": torch.rand(1, 3, 7, 11)},
        "content",
        {"picture": {2: h, 3: w}},
        project,
        {"mode": model.decoder.mode},
    )
    decode = folder / "decode.onnx"
    channels = len(model.decoder.K) * model.decoder.width
    # Sides that are all different, so that the exporter cannot take two of them for one.
    arguments = {
        "content": torch.rand(1, channels, 7, 11),
        "rows": torch.arange(13),
        "columns": torch.arange(17),
        "lr": torch.tensor([7, 11]),
        "origin": torch.tensor([0, 0]),
        "size": torch.tensor([13, 17]),
    }
    free: dict[str, Any] = {
        "content": {2: h, 3: w},
        "rows": {0: torch.export.Dim("R", min=1, max=1 << 20)},
        "columns": {0: torch.export.Dim("C", min=1, max=1 << 20)},
        "lr": None,
        "origin": None,
        "size": None,
    }
    _write(DecodeWindow(model), arguments, "rgb", free, decode, {"mode": model.decoder.mode})
    return project, decode


def export_fixed_scale(model: DIINN, folder: Path, scale: int) -> Path:
    """Write ``diinn-x<scale>.onnx``: ``input`` [B, 3, h, w] to ``output``, both in [0, 1].

    Raises:
        ExportError: packages are missing, the scale is not from 1 to 16, or the model has mode 4
            or init_q.
    """
    path = folder / f"diinn-x{scale}.onnx"
    # Every size but the channels stays free; the scale is fixed by the graph.
    free = {
        0: torch.export.Dim("batch", min=1, max=1 << 10),
        2: torch.export.Dim("h", min=1, max=1 << 20),
        3: torch.export.Dim("w", min=1, max=1 << 20),
    }
    _write(
        FixedScale(model, scale),
        {"input": torch.rand(2, 3, 7, 11)},
        "output",
        {"picture": free},
        path,
        {"mode": model.decoder.mode, "scale": scale},
    )
    return path


def _write(
    module: nn.Module,
    arguments: dict[str, Tensor],
    output: str,
    free: dict[str, Any],
    path: Path,
    about: dict[str, object],
) -> None:
    """Export one module, check the graph, and give the file its name when it is complete."""
    try:
        import onnx
        import onnxscript  # noqa: F401  # the exporter needs it
    except ImportError as error:
        raise ExportError(f"{error.name} is missing: pip install 'diinn_fast[export]'") from None
    with warnings.catch_warnings(), torch.no_grad():
        # Of the exporter's own internals, which its user cannot act on.
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module.float().cpu().eval(),
            tuple(arguments.values()),
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=free,
            input_names=list(arguments),
            output_names=[output],
            verbose=False,
        )
    assert program is not None
    graph = program.model_proto
    entries = {"producer": f"diinn_fast {__version__}", **about}
    onnx.helper.set_model_props(graph, {key: str(value) for key, value in entries.items()})
    # The exporter notes places of its own source in every node, which nobody else can use.
    for node in graph.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    onnx.checker.check_model(graph, full_check=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The file gets its name when it is complete, as every output.
    part = path.with_suffix(".part")
    onnx.save(graph, part)
    part.replace(path)
