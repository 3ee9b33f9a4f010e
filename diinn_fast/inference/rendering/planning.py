"""The plan of a render, for the memory that there is."""

from __future__ import annotations

import numpy as np
import torch

from diinn_fast.host import resident_bytes
from diinn_fast.inference.memory import available_bytes
from diinn_fast.inference.plan import Plan, Task, plan_within
from diinn_fast.inference.rates import measure_rates
from diinn_fast.inference.rendering.spec import SLACK_BYTES, RenderSpec
from diinn_fast.inference.sinks import finish_bytes, output_format

SHARE_OF_FREE = 0.7
"""How much of the free memory a render without a bound plans with."""

UNKNOWN_FREE = 4 << 30
"""Bytes taken as free where the system does not say."""


def make_plan(spec: RenderSpec, workers: int = 1) -> Plan:
    """Cut the work for the memory that there is; UpscaleError if it is too little."""
    engine = spec.engine
    layout = spec.layout
    on_host = engine.device.type == "cpu"
    task = Task(
        engine.model.encoder,
        engine.model.decoder,
        spec.lr,
        spec.hr,
        pixel_bytes=layout.channels * np.dtype(layout.dtype).itemsize,
        unit=output_format(spec.out).unit,
        halo=spec.halo if spec.by_network else 0,
        workers=workers,
        wraps=spec.wraps,
        item=engine.dtype.itemsize,
        bands=len(spec.sources),
        finishing=finish_bytes(spec.out, layout, spec.options) if on_host else 0,
    )
    base = held_bytes(spec)
    if spec.bound is not None:
        return plan_within(task, base, spec.bound)
    # Without a bound most of what is free, shared by the processes of this machine.
    free = available_bytes(engine.device) or UNKNOWN_FREE
    sharing = workers if on_host else 1
    return plan_within(task, base, base + int(SHARE_OF_FREE * free / sharing))


def held_bytes(spec: RenderSpec) -> int:
    """Bytes held before the work, with what libraries load and compile at their first use."""
    device = spec.engine.device
    measure_rates(spec.engine, spec.lr, spec.hr)
    if device.type == "cuda":
        return torch.cuda.memory_reserved(device)
    if device.type != "cpu":
        return 0
    reading = getattr(spec.source, "working_bytes", 0)
    return max(resident_bytes(), spec.source.resident_bytes) + reading + SLACK_BYTES


def fits(spec: RenderSpec, plan: Plan) -> bool:
    """Whether a plan of an earlier run keeps within the bound of this one."""
    if spec.bound is None:
        return True
    return held_bytes(spec) - SLACK_BYTES + plan.peak_bytes <= spec.bound


def predicted_peak(spec: RenderSpec, plan: Plan) -> int:
    """Most bytes that this process (its device) will hold."""
    return held_bytes(spec) + plan.peak_bytes
