"""The work of a render: tiles are encoded and decoded block by block by the caller's thread, and
another thread writes the blocks and records in the journal what is on the disk.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor

from diinn_fast.encoders.convolutions import with_halo
from diinn_fast.errors import UpscaleError
from diinn_fast.geometry import Window, split
from diinn_fast.inference.halo import halo_error
from diinn_fast.inference.memory import device_memory_within, freed_memory_kept
from diinn_fast.inference.plan import Plan
from diinn_fast.inference.progress import Progress, make_bar
from diinn_fast.inference.rendering.group import Group
from diinn_fast.inference.rendering.journal import Block, Journal, State
from diinn_fast.inference.rendering.partial import part_of
from diinn_fast.inference.rendering.spec import RenderSpec
from diinn_fast.inference.rendering.writer import Writer
from diinn_fast.inference.sinks import Sink
from diinn_fast.inference.transfer import Late
from diinn_fast.inference.windows import copy_samples, start_samples

log = logging.getLogger("diinn_fast")

BlockWindow = tuple[Block, Window]
"""A block and its window of the output."""

OUT_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory")
"""What errors of PyTorch say when there is no memory left."""


def render_tiles(
    spec: RenderSpec, state: State, sink: Sink, group: Group, *, progress: Progress
) -> None:
    """Make this process's share of the blocks that are not done."""
    plan = state.plan
    tiles = missing(state)
    if group.rank == 0:
        _warn_of_halo(spec, plan)
    if not tiles:
        return
    assert sink.unit == plan.unit, "the plan is for another format"
    total = spec.hr[0] * spec.hr[1]
    # A resumed bar begins where the interrupted one ended.
    left = sum(w.shape[0] * w.shape[1] for blocks in tiles for _, w in blocks)
    journal = Journal(part_of(spec.out), group.rank, state.job, plan)
    with (
        device_memory_within(spec.bound, spec.engine.device),
        make_bar(progress, total, total - left) as bar,
        Writer(sink, journal, bar) as writer,
    ):
        for blocks in group.share(tiles):
            _render_tile(spec, plan, blocks, writer)


def missing(state: State) -> list[list[BlockWindow]]:
    """The blocks that are not done, by tile."""
    found = []
    for t, tile in enumerate(state.plan.tile_windows()):
        planned = enumerate(state.plan.blocks(tile))
        blocks = [((t, b), window) for b, window in planned if (t, b) not in state.done]
        if blocks:
            found.append(blocks)
    return found


def _warn_of_halo(spec: RenderSpec, plan: Plan) -> None:
    if spec.by_network and plan.radius < getattr(spec.engine.model.encoder, "receptive_radius", 0):
        error = halo_error(spec.engine, spec.source, plan, spec.frame)
        log.warning(
            "a halo of %d LR pixels is an approximation: off by up to %.2g of 1",
            plan.radius,
            error,
        )


def _render_tile(
    spec: RenderSpec, plan: Plan, blocks: list[BlockWindow], writer: Writer, retried: bool = False
) -> None:
    """All blocks of a tile; in halves if the device's memory is short."""
    try:
        _render_blocks(spec, plan, blocks, writer)
        return
    except (RuntimeError, MemoryError) as error:
        if not _out_of_memory(error):
            raise
        left = [each for each in blocks if each[0] not in writer.given]
        if retried or len(left) < 2:
            raise UpscaleError(
                "the device is out of memory: give a smaller --max-memory, or free some memory"
            ) from error
    # Here, and not above, the error and all that its frames hold are gone.
    if spec.engine.device.type == "cuda":
        torch.cuda.empty_cache()
    log.warning("the device is out of memory: trying tiles of half the size")
    half = len(left) // 2
    _render_tile(spec, plan, left[:half], writer, retried=True)
    _render_tile(spec, plan, left[half:], writer, retried=True)


def _render_blocks(spec: RenderSpec, plan: Plan, blocks: list[BlockWindow], writer: Writer) -> None:
    """Encode what the blocks look at, once, and decode them."""
    if not spec.by_network:
        for block, window in blocks:
            writer.put(block, window, reduced_block(spec, spec.frame.place(window)))
        return
    # One encoding for all blocks of the tile: the encoder costs most.
    windows = [window for _, window in blocks]
    around = Window(
        min(w.y0 for w in windows),
        max(w.y1 for w in windows),
        min(w.x0 for w in windows),
        max(w.x1 for w in windows),
    )
    frame = spec.frame
    needed = spec.engine.model.decoder.lr_window(frame.place(around), frame.lr, frame.hr)
    region = with_halo(needed, frame.lr, plan.radius)
    features = [
        spec.engine.encode(source.read(*region)[0], plan.work_bytes) for source in spec.sources
    ]
    origin = region.y0, region.x0
    with nullcontext() if spec.bound is None else freed_memory_kept():
        for block, window in blocks:
            writer.put(block, window, render_block(spec, plan, features, origin, window))


def render_block(
    spec: RenderSpec,
    plan: Plan,
    features: Sequence[Tensor],
    origin: tuple[int, int],
    window: Window,
) -> np.ndarray:
    """Samples ``[rows, columns, C]`` of a block, strip by strip; a CUDA device decodes one while
    the one before is fetched and stored. ``features`` are those of each source.
    """
    samples = np.empty((*window.shape, spec.layout.channels), spec.layout.dtype)
    engine = spec.engine
    grid = spec.frame.hr
    late = Late(engine.device)
    for source, seen, channels in zip(spec.sources, features, spec.places, strict=True):
        for strip in split(window, plan.strip, window.shape[1]):
            rows = samples[strip.y0 - window.y0 : strip.y1 - window.y0]
            place = spec.frame.place(strip)
            late.do(
                start_samples(
                    rows, engine, source, seen, origin, place, grid, spec.neutral, channels
                )
            )
    late.finish()
    return samples


def reduced_block(spec: RenderSpec, window: Window) -> np.ndarray:
    """Samples ``[rows, columns, C]`` of a block of an output that is smaller than the picture."""
    samples = np.empty((*window.shape, spec.layout.channels), spec.layout.dtype)
    for source, channels in zip(spec.sources, spec.places, strict=True):
        copy_samples(samples, source, window, channels)
    return samples


def _out_of_memory(error: BaseException) -> bool:
    said = str(error).lower()
    return isinstance(error, MemoryError) or any(text in said for text in OUT_OF_MEMORY)
