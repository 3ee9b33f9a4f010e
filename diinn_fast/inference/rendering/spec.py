"""What a render makes: the picture, the output, and everything that its samples depend on."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diinn_fast.errors import UpscaleError
from diinn_fast.formats.bands import Bands, bands_of_channels, check_asked
from diinn_fast.formats.missing import TOPS
from diinn_fast.host import resident_bytes
from diinn_fast.inference.engine import Engine
from diinn_fast.inference.identity import weights_digest
from diinn_fast.inference.memory import give_back_freed_memory, parse_size
from diinn_fast.inference.neutral import source_is_neutral
from diinn_fast.inference.ranges import (
    DTYPE,
    Asked,
    check_range,
    colours,
    warn_of_unused,
)
from diinn_fast.inference.reduced import needs_network, reduced, reduced_size
from diinn_fast.inference.rendering.group import first_rank
from diinn_fast.inference.rendering.inputs import InputFiles
from diinn_fast.inference.sinks import (
    Layout,
    SinkOptions,
    disk_bytes,
    fitted_to,
    output_format,
    sink_kind,
)
from diinn_fast.inference.sizes import TargetSize, target_size
from diinn_fast.inference.sources import Source, bits_of, open_bands, open_source
from diinn_fast.inference.sources.inpainted import inpainted
from diinn_fast.inference.windows import Place, place_of
from diinn_fast.inference.wrapped import Frame, frame_of_copies, wrapped
from diinn_fast.metadata import KEEP, chosen

if TYPE_CHECKING:
    from typing import Unpack

SLACK_BYTES = 48 << 20
"""What libraries map, compile and keep beyond what a first small run has shown; measured, see
bench/bounded.py.
"""

PIXELS = 3
"""Raised when the same job begins to give other pixels: an older output is then not its own."""


@dataclass(frozen=True)
class RenderSpec:
    """One output to be made.

    Attributes:
        picture: (height, width) of the picture.
        sources: what the network enlarges, or for a smaller output, the output's own pixels; of a
            picture that is upscaled band by band, one for each band.
        places: which channels of the output each of them fills.
        neutral: the three channels are equal everywhere, and so are those of the output.
        hr: (height, width) of the output.
        layout: what the file holds; its ``job`` is the fingerprint of all that the samples depend
            on, and no more: not the bound, the plan, or the number of processes.
        halo: LR pixels read around a tile; None: as many as the encoder sees.
        bound: bytes of memory; None: most of what is free.
        inputs: the picture's files.
        target: how large the output was asked to become.
        lost: what the picture's file says and the output does not keep, by name.
        frame: where the output lies on the grids of the source and of its enlargement.
    """

    engine: Engine
    picture: tuple[int, int]
    sources: tuple[Source, ...]
    places: tuple[Place, ...]
    neutral: bool
    out: Path
    hr: tuple[int, int]
    layout: Layout
    options: SinkOptions
    halo: int | None
    bound: int | None
    inputs: InputFiles
    target: TargetSize
    lost: tuple[str, ...]
    frame: Frame

    @property
    def source(self) -> Source:
        """The first one, whose file is that of all."""
        return self.sources[0]

    @property
    def lr(self) -> tuple[int, int]:
        """(height, width) of the picture, unless it is reduced first."""
        down, across = self.frame.copies
        return self.source.height // down, self.source.width // across

    @property
    def wraps(self) -> bool:
        """Whether beyond an edge of the picture lies its opposite edge."""
        return self.frame.copies != (1, 1)

    @property
    def by_network(self) -> bool:
        """Whether the network has anything to do."""
        return needs_network(self.picture, self.hr)


def prepare(
    engine: Engine,
    picture: Any,
    out: str | os.PathLike[str],
    *,
    max_memory: int | str | None = None,
    halo: int | None = None,
    pyramid: bool = False,
    compress: bool = True,
    metadata: str = KEEP,
    range: Asked = DTYPE,
    wrap: bool = False,
    bands: str | None = None,
    **target: Unpack[TargetSize],
) -> RenderSpec:
    """Open the picture and check all that can be checked before the work; arguments as of
    `Upscaler.render`.
    """
    out = Path(out)
    options = SinkOptions(pyramid=pyramid, compress=compress)
    _check(engine, out, halo)
    asked = check_range(range)
    bound, on_host = _bounds(engine, out, max_memory)
    sources, channels = _opened(picture, on_host, asked, each=check_asked(bands))
    lr = sources[0].height, sources[0].width
    hr = target_size(lr, **target)
    engine = engine.for_bits(bits_of(sources[0]))
    engine.check_sizes(lr, hr)
    layout, lost = _layout_of(sources[0], channels, out, hr, metadata)
    inputs = InputFiles(picture)
    identity = _identity(inputs, sources, wrap, bands)
    job = _fingerprint(engine, identity, out, layout, options, halo, metadata)
    disk_bytes(out, layout := replace(layout, job=job), options)  # refuses what it cannot hold
    _warn_of_samples(sources, asked)
    frame = _frame(engine, lr, hr, wrap)
    seen, neutral = _for_network(sources, frame)
    return RenderSpec(
        engine=engine,
        picture=lr,
        sources=seen,
        places=_places(sources, channels),
        neutral=neutral,
        out=out,
        hr=hr,
        layout=layout,
        options=options,
        halo=halo,
        bound=bound,
        inputs=inputs,
        target=target,
        lost=lost,
        frame=frame,
    )


def _opened(
    picture: Any, max_bytes: int | None, asked: Asked, *, each: bool
) -> tuple[list[Source], Bands]:
    """(one source, or one for each band; what the channels of the output are)."""
    if each:
        return open_bands(picture, max_bytes=max_bytes, range=asked)
    source = open_source(picture, max_bytes=max_bytes, range=asked)
    return [source], bands_of_channels((1 if source.grey else 3) + source.alpha)


def _identity(inputs: InputFiles, sources: list[Source], wrap: bool, bands: str | None) -> str:
    """What is enlarged: work is continued only by a job that would make the same bytes."""
    ranges = " ".join(str(each.range) for each in sources)
    return f"{inputs.identity or sources[0].identity} {ranges} {wrap} {bands}"


def _places(sources: list[Source], channels: Bands) -> tuple[Place, ...]:
    """Where each source goes; the alpha of all bands is written with the first."""
    if len(sources) == 1 and channels.is_picture:
        return (place_of(sources[0]),)
    numbers = [n for n in range(channels.count) if n != channels.alpha]
    places = [Place(slice(n, n + 1)) for n in numbers]
    return (replace(places[0], alpha=channels.alpha), *places[1:])


def _layout_of(
    source: Source, channels: Bands, out: Path, hr: tuple[int, int], metadata: str
) -> tuple[Layout, tuple[str, ...]]:
    """What the file is to hold, and the names of what its format cannot keep."""
    lr = source.height, source.width
    said = chosen(source.metadata, metadata).rescaled(lr, hr)
    kept, lost = fitted_to(out, said, channels.colours)
    others = None if channels.is_picture else channels
    return Layout(*hr, channels.count, source.dtype, kept, others=others), tuple(lost)


def _frame(engine: Engine, lr: tuple[int, int], hr: tuple[int, int], wrap: bool) -> Frame:
    """Where the output lies: among its copies, or alone."""
    if wrap:
        return frame_of_copies(lr, hr, engine.model.encoder)
    return Frame(reduced_size(lr, hr), hr)


def _for_network(sources: list[Source], frame: Frame) -> tuple[tuple[Source, ...], bool]:
    """The sources as the network reads them, and whether three channels are equal everywhere."""
    seen = [inpainted(wrapped(source, frame)) for source in sources]
    # Before the reduction, whose rounding could make channels differ.
    neutral = all(source_is_neutral(source) for source in seen)
    return tuple(reduced(source, frame.hr) for source in seen), neutral


def _bounds(
    engine: Engine, out: Path, max_memory: int | str | None
) -> tuple[int | None, int | None]:
    """(bound, how much of it the picture may take on the host), None without a bound."""
    bound = None if max_memory is None else parse_size(max_memory)
    # What the process holds before it starts counts: all of it, and no more than that.
    if bound is not None:
        give_back_freed_memory()
    output_format(out).prepare(out)
    if bound is None or engine.device.type != "cpu":
        return bound, None
    # Small pictures are left to the plan's refusal, which says more.
    return bound, max(SLACK_BYTES, bound - resident_bytes())


def _warn_of_samples(sources: list[Source], asked: Asked) -> None:
    """Of samples that the network sees little of; once, by the first process."""
    if not first_rank():
        return
    for number, source in enumerate(sources, 1):
        what = f"band {number}" if len(sources) > 1 else "the picture"
        warn_of_unused(asked, TOPS[source.dtype], partial(colours, source), what)


def _check(engine: Engine, out: Path, halo: int | None) -> None:
    if engine.self_ensemble:
        raise UpscaleError(
            "a self-ensemble needs the whole picture in memory: leave out one of the two"
        )
    if halo is not None and halo < 0:
        raise UpscaleError(f"halo must be a number of LR pixels, got {halo}")
    if sink_kind(out) is None:
        raise UpscaleError(
            f"{out} cannot be written piece by piece: name it .png, .tif, .npy, .zarr or .ome.zarr"
        )


def _fingerprint(
    engine: Engine,
    identity: str,
    out: Path,
    layout: Layout,
    options: SinkOptions,
    halo: int | None,
    metadata: str,
) -> str:
    decoder = engine.model.decoder
    backend = engine.used_backend
    computed = [str(engine.dtype), engine.device.type, backend, halo, *engine.rounding(backend)]
    facts = {
        "pixels": PIXELS,
        "source": identity,
        "model": [weights_digest(engine.model), decoder.mode, decoder.init_q],
        "computed": computed,
        "layout": [layout.height, layout.width, layout.channels, layout.dtype],
        "file": [sink_kind(out), options.pyramid, options.compress, metadata],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
