"""A plan as text, for ``--dry-run``."""

from __future__ import annotations

from diinn_fast.files import size_text
from diinn_fast.inference.plan import Plan
from diinn_fast.inference.rates import measure_rates
from diinn_fast.inference.rendering.planning import predicted_peak
from diinn_fast.inference.rendering.spec import RenderSpec
from diinn_fast.inference.sinks import disk_bytes


def describe(spec: RenderSpec, plan: Plan, workers: int = 1) -> str:
    """Tiles, halo, memory, disk and time, a line for each."""
    h, w = spec.picture
    height, width = spec.hr
    tiles = plan.tile_windows()
    high, wide = tiles[0].shape
    blocks = sum(len(plan.blocks(tile)) for tile in tiles)
    encoder = spec.engine.model.encoder
    exact = not spec.by_network or plan.radius == getattr(encoder, "receptive_radius", plan.radius)
    encoded = plan.encoded_pixels(spec.engine.model.decoder)
    more = 100 * (encoded / (spec.lr[0] * spec.lr[1]) - 1)
    part, final = disk_bytes(spec.out, spec.layout, spec.options)
    # Two small runs on this machine, extrapolated.
    per_encoded, per_decoded = measure_rates(spec.engine, spec.lr, spec.hr)
    seconds = (encoded * per_encoded + height * width * per_decoded) / workers
    lines = [
        f"{w}x{h} -> {spec.out} {width}x{height}, {spec.layout.channels} channels of "
        f"{spec.layout.dtype}",
        f"tiles      {len(tiles)} ({plan.tiles[0]} down, {plan.tiles[1]} across) of about "
        f"{wide}x{high} pixels, in {blocks} blocks",
        f"halo       {plan.radius} LR pixels ({'exact' if exact else 'an approximation'}), "
        f"{more:.0f} % more to encode",
        f"memory     {size_text(predicted_peak(spec, plan))} at most",
        f"disk       {size_text(part + final)} at most while it works, {size_text(final)} in "
        "the end",
        f"time       about {duration(seconds)}",
    ]
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, whichever reads best."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
