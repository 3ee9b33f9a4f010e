"""Models for programs without PyTorch: ONNX graphs of plain operators.

- ``modules``: the network as two stages (`Project`, `DecodeWindow`) and at one integer scale
  (`FixedScale`), written so that all sizes stay free;
- ``onnx``: writing them as files, and checking those.

Needs the extra ``export`` (``pip install 'diinn_fast[export]'``); docs/export.md has callers.
"""

from __future__ import annotations

from diinn_fast.export.modules import DecodeWindow, FixedScale, Project
from diinn_fast.export.onnx import export_any_scale, export_fixed_scale

__all__ = ["DecodeWindow", "FixedScale", "Project", "export_any_scale", "export_fixed_scale"]
