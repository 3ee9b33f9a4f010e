"""Outputs of any size into a file, within a memory bound, so that nothing is lost on the way.

Tiles are encoded and decoded block by block by the caller's thread; another thread writes the
blocks and, every few seconds, makes them durable and says so in the journal. All that lies in
``OUT.part`` until it takes its name.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from diinn_fast.errors import ImageError, UnfinishedError, UpscaleError
from diinn_fast.formats.image import already_exists
from diinn_fast.formats.sinks import system_errors
from diinn_fast.formats.zarr_store import ZarrSink, import_zarr
from diinn_fast.geometry import Window
from diinn_fast.inference.bicubic import bicubic_range, resize_bicubic
from diinn_fast.inference.bleed import bleed_alpha
from diinn_fast.inference.halo import halo_error
from diinn_fast.inference.journal import Block, Journal, State, read_journals
from diinn_fast.inference.memory import (
    available_bytes,
    freed_memory_kept,
    give_back_freed_memory,
    parse_size,
    resident_bytes,
    size_text,
)
from diinn_fast.inference.plan import Plan, Task, plan_within, split
from diinn_fast.inference.ranks import Alone, join_ranks
from diinn_fast.inference.rates import measure_rates
from diinn_fast.inference.run import Upscaler, store, to_unit
from diinn_fast.inference.sinks import (
    Layout,
    Sink,
    SinkOptions,
    disk_bytes,
    finish_bytes,
    open_sink,
    read_job,
    sink_kind,
)
from diinn_fast.inference.sizes import target_size, warn_of_scale
from diinn_fast.inference.sources import Source, open_source
from diinn_fast.inference.writer import Writer
from diinn_fast.model import DIINN

log = logging.getLogger("diinn_fast")

SLACK_BYTES = 48 << 20
"""What libraries map, compile and keep beyond what a first small run has shown; measured, see
bench/bounded.py.
"""
OWN_NAMES = ("journal-", "final", "samples")
"""How the names of all that is in OUT.part begin."""


def render(
    picture: Any,
    out: str | os.PathLike[str],
    *,
    scale: float | Sequence[float] | None = None,
    size: Sequence[int] | None = None,
    long_side: int | None = None,
    model: DIINN | str | os.PathLike[str] | None = None,
    device: str | torch.device | None = None,
    precision: str | None = None,
    backend: str | None = None,
    max_memory: int | str | None = None,
    halo: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    options: SinkOptions | None = None,
    progress: bool = False,
) -> Path:
    """Upscale a picture of any kind and size into a file; returns its path.

    Args:
        picture: as of `diinn_fast.upscale`; files of tiled TIFF, .npy and Zarr are read by region.
        out: .png, .tif, .npy, .zarr or .ome.zarr.
        max_memory: bound on the process's peak resident memory (of the device's memory, where that
            is not the CPU): bytes, or "600MiB", "1.5GiB". Default: most of what is free.
        halo: LR pixels read around a tile; default: as many as the encoder sees, so that tiles
            cannot be told. Fewer are an approximation, whose error is logged.
        resume: continue what was interrupted; a finished output of the same job is left as it is.
        overwrite: replace an existing output, or what was interrupted.
        options: compression, pyramid.
        progress: show a bar on stderr.

    The other arguments are those of `diinn_fast.upscale`. Started by ``torchrun``, processes share
    the tiles.

    Raises:
        UpscaleError, ImageError: what cannot be done. UnfinishedError, an UpscaleError: what could
        not go on, such as of a full disk; what is done is kept. FloatingPointError: likewise, the
        network's output is not finite.
        KeyboardInterrupt: on SIGINT and SIGTERM, when what is done has been kept.
    """
    upscaler = Upscaler(model, device=device, precision=precision, backend=backend)
    job = Job.prepare(
        upscaler, picture, out, scale=scale, size=size, long_side=long_side,
        max_memory=max_memory, halo=halo,
        options=options,
    )  # fmt: skip
    job.run(resume=resume, overwrite=overwrite, progress=progress)
    return job.out


@dataclass
class Job:
    """One output to be made; `prepare` makes it, `run` does it."""

    upscaler: Upscaler
    source: Source
    out: Path
    hr: tuple[int, int]
    layout: Layout
    options: SinkOptions
    halo: int | None
    bound: int | None

    @classmethod
    def prepare(
        cls,
        upscaler: Upscaler,
        picture: Any,
        out: str | os.PathLike[str],
        *,
        scale: float | Sequence[float] | None = None,
        size: Sequence[int] | None = None,
        long_side: int | None = None,
        max_memory: int | str | None = None,
        halo: int | None = None,
        options: SinkOptions | None = None,
    ) -> Job:
        """Open the picture and check all that can be checked before the work; arguments as of
        `render`.
        """
        out = Path(out)
        options = options or SinkOptions()
        if upscaler.self_ensemble:
            raise UpscaleError(
                "a self-ensemble needs the whole picture in memory: leave out one of the two"
            )
        if halo is not None and halo < 0:
            raise UpscaleError(f"halo must be a number of LR pixels, got {halo}")
        kind = sink_kind(out)
        if kind is None:
            raise UpscaleError(
                f"{out} cannot be written piece by piece: name it .png, .tif, .npy, .zarr or "
                ".ome.zarr"
            )
        bound = None if max_memory is None else parse_size(max_memory)
        if bound is not None:
            give_back_freed_memory()
        if kind.endswith("zarr"):
            import_zarr(out)  # part of what the process holds before it starts
        on_host = None
        if (
            bound is not None and upscaler.device.type == "cpu"
        ):  # small pictures are left to the plan's refusal
            on_host = max(SLACK_BYTES, bound - resident_bytes())
        source = open_source(picture, max_bytes=on_host)
        lr = source.height, source.width
        hr = target_size(lr, scale=scale, size=size, long_side=long_side)
        upscaler.check_sizes(lr, hr)
        channels = (1 if source.grey else 3) + source.alpha
        layout = Layout(*hr, channels, source.dtype, icc=source.icc, dpi=source.dpi)
        job = cls(upscaler, source, out, hr, layout, options, halo, bound)
        job.layout = Layout(
            *hr, channels, source.dtype, icc=source.icc, dpi=source.dpi, job=job.fingerprint
        )
        disk_bytes(out, job.layout, options)  # refuses what the format cannot hold
        if source.alpha:
            job.source = Bled.of(source, on_host)
        return job

    @property
    def lr(self) -> tuple[int, int]:
        return self.source.height, self.source.width

    @property
    def part(self) -> Path:
        return part_of(self.out)

    @cached_property
    def fingerprint(self) -> str:
        """All that the samples depend on, and no more: not the bound, the plan, or the number of
        processes.
        """
        digest = hashlib.sha256()
        for name, value in sorted(self.upscaler.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().numpy())
        decoder = self.upscaler.model.decoder
        layout = self.layout
        facts = {
            "source": self.source.identity,
            "model": [digest.hexdigest(), decoder.mode, decoder.init_q],
            "computed": [
                str(self.upscaler.dtype),
                self.upscaler.device.type,
                self.upscaler.used_backend,
                self.halo,
            ],
            "layout": [layout.height, layout.width, layout.channels, layout.dtype],
            "file": [sink_kind(self.out), self.options.pyramid, self.options.compress],
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    # -- the plan ----------------------------------------------------------------------------------

    def plan(self, workers: int = 1) -> Plan:
        """Cut the work for the memory that there is; UpscaleError if it is too little."""
        upscaler = self.upscaler
        layout = self.layout
        kind = sink_kind(self.out)
        task = Task(
            upscaler.model.encoder,
            upscaler.model.decoder,
            self.lr,
            self.hr,
            pixel_bytes=layout.channels * np.dtype(layout.dtype).itemsize,
            unit=ZarrSink.unit if kind in ("zarr", "ome-zarr") else (1, 1),
            halo=self.halo,
            workers=workers,
            item=upscaler.dtype.itemsize,
            finishing=finish_bytes(self.out, layout, self.options)
            if upscaler.device.type == "cpu"
            else 0,
        )
        base = self._held()
        bound = self.bound
        if bound is None:
            free = available_bytes(upscaler.device)
            bound = base + int(
                0.7 * (free or 4 << 30) / (workers if upscaler.device.type == "cpu" else 1)
            )
        return plan_within(task, base, bound)

    def _held(self) -> int:
        """Bytes held before the work, with what libraries load and compile at their first use."""
        device = self.upscaler.device
        measure_rates(self.upscaler, self.lr, self.hr)
        if device.type == "cuda":
            return torch.cuda.memory_reserved(device)
        return (
            (max(resident_bytes(), self.source.resident_bytes) + SLACK_BYTES)
            if device.type == "cpu"
            else 0
        )

    def predicted_peak(self, plan: Plan) -> int:
        """Most bytes that this process (its device) will hold."""
        return self._held() + plan.peak_bytes

    def describe(self, plan: Plan, workers: int = 1) -> str:
        """The plan in words, for ``--dry-run``."""
        decoder = self.upscaler.model.decoder
        tiles = plan.tile_windows()
        encoded = plan.encoded_pixels(decoder)
        part, final = disk_bytes(self.out, self.layout, self.options)
        per_encoded, per_decoded = measure_rates(self.upscaler, self.lr, self.hr)
        seconds = (encoded * per_encoded + self.hr[0] * self.hr[1] * per_decoded) / workers
        exact = plan.radius == getattr(self.upscaler.model.encoder, "receptive_radius", plan.radius)
        high, wide = tiles[0].shape
        h, w = self.lr
        height, width = self.hr
        blocks = sum(len(plan.blocks(tile)) for tile in tiles)
        lines = [
            f"{w}x{h} -> {self.out} {width}x{height}, {self.layout.channels} channels of "
            f"{self.layout.dtype}",
            f"tiles      {len(tiles)} ({plan.tiles[0]} down, {plan.tiles[1]} across) of about "
            f"{wide}x{high} pixels, "
            f"in {blocks} blocks",
            f"halo       {plan.radius} LR pixels ({'exact' if exact else 'an approximation'}), "
            f"{100 * (encoded / (h * w) - 1):.0f} % more to encode",
            f"memory     {size_text(self.predicted_peak(plan))} at most",
            f"disk       {size_text(part + final)} at most while it works, {size_text(final)} in "
            "the end",
            f"time       about {_duration(seconds)}",
        ]
        return "\n".join(lines)

    # -- the work ----------------------------------------------------------------------------------

    def run(self, *, resume: bool = False, overwrite: bool = False, progress: bool = False) -> bool:
        """Make the output, alone or as one of several processes. False if it was there already."""
        ranks = join_ranks()
        try:
            state = self._begin(ranks, resume, overwrite)
            if state is None:
                log.info("%s is complete already", self.out)
                return False
            warn_of_scale(self.lr, self.hr, self.upscaler.model.trained_scales)
            with _interruptible(), self._kept_on_errors(), system_errors(self.out, self.part):
                self._work(ranks, state, overwrite, progress and ranks.rank == 0)
            return True
        finally:
            ranks.close()
            self.source.close()

    def _begin(self, ranks: Alone, resume: bool, overwrite: bool) -> State | None:
        """What is to be done, the same in all processes; None if nothing is."""
        if ranks.rank > 0:
            words = ranks.hear()
            if "refused" in words:
                raise UpscaleError(words["refused"])
            if words["job"] is None:
                return None
            if words["job"] != self.fingerprint:
                raise UpscaleError(f"process {ranks.rank} was given another job than process 0")
            found = read_journals(self.part)
            return State(
                words["job"], Plan.from_json(words["plan"]), found.done if found else set()
            )
        try:
            state = self._prepare_part(ranks.world, resume, overwrite)
        except (ValueError, OSError) as error:
            ranks.announce({"refused": str(error)})
            raise
        ranks.announce(
            {"job": None} if state is None else {"job": state.job, "plan": state.plan.as_json()}
        )
        return state

    def _prepare_part(self, workers: int, resume: bool, overwrite: bool) -> State | None:
        """Resume or make OUT.part with its sink and journal, in the first process."""
        out = self.out
        part = self.part
        there = os.path.lexists(part)
        if there and not (
            part.is_dir() and all(p.name.startswith(OWN_NAMES) for p in part.iterdir())
        ):
            raise UpscaleError(
                f"{part} is in the way and not ours: move it, or choose another name"
            )
        state = read_journals(part) if there else None
        same = state is not None and state.job == self.fingerprint
        if resume and os.path.lexists(out) and read_job(out) == self.fingerprint:
            if there:
                shutil.rmtree(part)
            return None
        if resume and same:
            assert state is not None
            if os.path.lexists(out) and not overwrite and not _complete(state):
                raise already_exists(out)
            if (
                self.bound is not None
                and self._held() - SLACK_BYTES + state.plan.peak_bytes > self.bound
            ):
                raise UpscaleError(
                    f"{part} was planned for more memory than {size_text(self.bound)}: resume it "
                    "with what it was "
                    "started with, or begin anew with --overwrite"
                )
            self._check_disk(part)
            return state
        if not overwrite:
            if os.path.lexists(out):
                raise already_exists(out)
            if state is not None:
                what = "is of another job: pass --overwrite to begin anew" if resume else (
                    "is of an interrupted run: pass --resume to continue it or --overwrite to "
                    "begin anew"
                )  # fmt: skip
                raise UpscaleError(f"{part} {what}")
        if not out.parent.is_dir():
            raise ImageError(
                f"{out} cannot be written, {out.parent} is not a folder: create it first."
            )
        plan = self.plan(workers)
        if there:
            shutil.rmtree(part)
        self._check_disk(part)
        try:
            part.mkdir()
        except OSError as error:
            raise ImageError(
                f"{part} cannot be made ({error.strerror}): choose another folder."
            ) from error
        open_sink(
            out, self.layout, part=part, resume=False, options=self.options, overwrite=overwrite
        ).close()
        with system_errors(out, part):
            Journal(part, 0, self.fingerprint, plan).close()
        return State(self.fingerprint, plan, set())

    def _check_disk(self, part: Path) -> None:
        """Refuse what the disk has no room for, in OUT.part and in its final form together."""
        needed = sum(disk_bytes(self.out, self.layout, self.options))
        if part.is_dir():
            needed -= sum(f.stat().st_blocks * 512 for f in part.rglob("*") if f.is_file())
        free = shutil.disk_usage(self.out.parent).free
        if needed > free:
            raise UpscaleError(
                f"{self.out} needs up to {size_text(needed)} of disk and {size_text(free)} are "
                "free: "
                "free some space, choose another folder or a smaller size"
            )

    def _work(self, ranks: Alone, state: State, overwrite: bool, progress: bool) -> None:
        plan = state.plan
        tiles = state.plan.tile_windows()
        todo = []
        for t, tile in enumerate(tiles):
            blocks = [
                ((t, b), w) for b, w in enumerate(plan.blocks(tile)) if (t, b) not in state.done
            ]
            if blocks:
                todo.append(blocks)
        pixels = sum(w.shape[0] * w.shape[1] for blocks in todo for _, w in blocks)
        total = self.hr[0] * self.hr[1]
        if (
            plan.radius < getattr(self.upscaler.model.encoder, "receptive_radius", 0)
            and ranks.rank == 0
        ):
            error = halo_error(self.upscaler, self.source, plan)
            log.warning(
                "a halo of %d LR pixels is an approximation: off by up to %.2g of 1",
                plan.radius,
                error,
            )
        sink = open_sink(
            self.out,
            self.layout,
            part=self.part,
            resume=True,
            options=self.options,
            overwrite=overwrite,
        )
        try:
            if todo:
                assert sink.unit == plan.unit, "the plan is for another format"
                journal = Journal(self.part, ranks.rank, state.job, plan)
                with (
                    tqdm(
                        total=total, initial=total - pixels, unit="px", unit_scale=True, delay=1,
                        leave=False,
                        disable=not progress,
                    ) as bar,
                    Writer(sink, journal, bar) as writer,
                ):  # fmt: skip
                    for blocks in ranks.share(todo):
                        self._tile(plan, blocks, writer)
            ranks.finish()
            if ranks.rank == 0:
                self._finish(sink, progress)
        finally:
            sink.close()

    def _finish(self, sink: Sink, progress: bool) -> None:
        state = read_journals(self.part)
        if state is None or not _complete(state):
            raise UpscaleError(
                f"{self.out} is not complete, a process has died: run it again with --resume"
            )
        with tqdm(
            total=self.hr[0], desc="writing", unit="row", delay=1, leave=False, disable=not progress
        ) as bar:  # fmt: skip
            sink.finish(lambda done, rows: bar.update(done - bar.n))
        sink.close()
        shutil.rmtree(self.part)

    def _tile(
        self, plan: Plan, blocks: list[tuple[Block, Window]], writer: Writer, retried: bool = False
    ) -> None:
        """Encode what the blocks of a tile look at, and decode them; in halves if the device's
        memory is short.
        """
        try:
            self._blocks(plan, blocks, writer)
            return
        except (RuntimeError, MemoryError) as error:
            if not _out_of_memory(error):
                raise
            left = [block for block in blocks if block[0] not in writer.given]
            if retried or len(left) < 2:
                raise UpscaleError(
                    "the device is out of memory: give a smaller --max-memory, or free some memory"
                ) from error
        # Here, and not above, the error and all that its frames hold are gone.
        if self.upscaler.device.type == "cuda":
            torch.cuda.empty_cache()
        log.warning("the device is out of memory: trying tiles of half the size")
        for half in (left[: len(left) // 2], left[len(left) // 2 :]):
            self._tile(plan, half, writer, retried=True)

    def _blocks(self, plan: Plan, blocks: list[tuple[Block, Window]], writer: Writer) -> None:
        windows = [window for _, window in blocks]
        y0 = min(w[0] for w in windows)
        x0 = min(w[2] for w in windows)
        y1 = max(w[1] for w in windows)
        x1 = max(w[3] for w in windows)
        needed = self.upscaler.model.decoder.lr_window((y0, y1, x0, x1), self.lr, self.hr)
        features, origin = encode_region(
            self.upscaler, self.source, plan.region(needed), plan.work_bytes
        )
        with nullcontext() if self.bound is None else freed_memory_kept():
            for block, window in blocks:
                writer.put(block, window, self._block(plan, features, origin, window))

    def _block(
        self, plan: Plan, features: Tensor, origin: tuple[int, int], window: Window
    ) -> np.ndarray:
        """Samples ``[rows, columns, C]`` of a block."""
        samples = np.empty((*window.shape, self.layout.channels), self.layout.dtype)
        planes = torch.from_numpy(samples).permute(2, 0, 1)
        colours = 1 if self.source.grey else 3
        for strip in split(window, plan.strip, window.shape[1]):
            rows = slice(strip.y0 - window.y0, strip.y1 - window.y0)
            band = to_unit(self.upscaler.decode(features, self.hr, strip, tile=(self.lr, origin)))
            store(planes[:colours, rows], band.mean(0, keepdim=True) if self.source.grey else band)
            if self.source.alpha:
                i0, i1, j0, j1 = bicubic_range(strip, self.lr, self.hr)
                _, alpha = self.source.read(i0, i1, j0, j1)
                assert alpha is not None
                store(
                    planes[colours:, rows],
                    resize_bicubic(alpha, self.hr, strip, tile=(self.lr, (i0, j0))),
                )
        return samples

    @contextmanager
    def _kept_on_errors(self) -> Iterator[None]:
        """Say in every error what is kept."""
        kept = f"{self.part} keeps what is done: run it again with --resume"
        try:
            yield
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"interrupted, {kept}") from None
        except FloatingPointError as error:
            raise FloatingPointError(f"{error}; {kept}") from error
        except (UpscaleError, ImageError) as error:
            said = str(error)
            raise UnfinishedError(
                said if "resume" in said else f"{said.rstrip('.')}; {kept}"
            ) from error


def encode_region(
    upscaler: Upscaler, source: Source, region: Window, work_bytes: int | None = None
) -> tuple[Tensor, tuple[int, int]]:
    """Features of LR rows and columns, and where they begin; wrong near edges that are not the
    image's.
    """
    i0, i1, j0, j1 = region
    rgb, _ = source.read(i0, i1, j0, j1)
    return upscaler.encode(rgb, work_bytes), (i0, j0)


class Bled:
    """A picture with alpha, held in memory: its colour goes on under transparent pixels (see
    `bleed_alpha`).
    """

    def __init__(self, source: Source, rgb: Tensor, alpha: Tensor) -> None:
        self._rgb = rgb
        self._alpha = alpha
        self.height = source.height
        self.width = source.width
        self.grey = source.grey
        self.alpha = source.alpha
        self.bits = source.bits
        self.dtype = source.dtype
        self.icc = source.icc
        self.dpi = source.dpi
        self.identity = source.identity
        self.resident_bytes = 16 * rgb[0].numel()

    @classmethod
    def of(cls, source: Source, most: int | None) -> Bled:
        """UpscaleError if it needs more than ``most`` bytes."""
        needed = 60 * source.height * source.width  # with the pyramid and its weights
        if most is not None and needed > most:
            raise UpscaleError(
                f"a picture with alpha is held in memory, which takes {size_text(needed)}: "
                "give a larger --max-memory, or save it without alpha"
            )
        rgb, alpha = source.read(0, source.height, 0, source.width)
        source.close()
        assert alpha is not None
        return cls(source, bleed_alpha(rgb, alpha), alpha)

    def read(self, y0: int, y1: int, x0: int, x1: int) -> tuple[Tensor, Tensor]:
        return self._rgb[:, y0:y1, x0:x1], self._alpha[:, y0:y1, x0:x1]

    def close(self) -> None:
        pass


def part_of(out: Path) -> Path:
    """The folder that holds an output while it is made."""
    return out.with_name(out.name + ".part")


def _complete(state: State) -> bool:
    plan = state.plan
    return all(
        (t, b) in state.done
        for t, tile in enumerate(plan.tile_windows())
        for b in range(len(plan.blocks(tile)))
    )


def _out_of_memory(error: BaseException) -> bool:
    texts = ("out of memory", "not enough memory", "can't allocate memory")
    return isinstance(error, MemoryError) or any(text in str(error).lower() for text in texts)


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM, by which torchrun ends the others when one process has died, as
    KeyboardInterrupt.
    """

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
