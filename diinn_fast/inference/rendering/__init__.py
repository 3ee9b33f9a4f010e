"""Render an output of any size to a file, within a memory bound, resumable after a crash.

spec = prepare(engine, "map.tif", "huge.tif", scale=8, max_memory="1.5GiB")
print(describe(spec, make_plan(spec)))
run(spec, resume=True)
"""

from diinn_fast.inference.rendering.execute import run
from diinn_fast.inference.rendering.partial import part_of
from diinn_fast.inference.rendering.planning import make_plan, predicted_peak
from diinn_fast.inference.rendering.report import describe
from diinn_fast.inference.rendering.spec import RenderSpec, prepare

__all__ = [
    "RenderSpec",
    "describe",
    "make_plan",
    "part_of",
    "predicted_peak",
    "prepare",
    "run",
]
