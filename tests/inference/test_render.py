"""Outputs in pieces: the pixels of the whole whatever the plan, nothing lost in kills and full
disks, refusals.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diinn_fast import DIINN
from diinn_fast.errors import ImageError, UnfinishedError, UpscaleError
from diinn_fast.formats import read_image
from diinn_fast.geometry import Window
from diinn_fast.inference import Upscaler, plan, rendering
from diinn_fast.inference import render as render_public
from diinn_fast.inference.bicubic import bicubic_range, resize_bicubic
from diinn_fast.inference.plan import Plan, Task, cuts, make_plan, smallest_bound
from diinn_fast.inference.reduced import reduced_size
from diinn_fast.inference.rendering import loop, planning, writer
from diinn_fast.inference.rendering.journal import Journal, read_journals
from tests.helpers.problems import make_decoder, oracle
from tests.helpers.small_models import picture, small_model

MIB = 1 << 20
PYRAMID = [(540, 660), (270, 330), (135, 165)]


@pytest.fixture(scope="module")
def edsr() -> Upscaler:
    return Upscaler(small_model("edsr"), device="cpu")


@pytest.fixture(scope="module")
def rdn() -> Upscaler:
    return Upscaler(small_model("rdn"), device="cpu")


def with_plan(
    monkeypatch: pytest.MonkeyPatch,
    tiles: tuple[int, int] = (2, 3),
    block: tuple[int, int] = (32, 40),
    strip: int = 7,
    unit: tuple[int, int] = (1, 1),
    work: int = 1 << 16,
) -> None:
    """Make all renders go by these numbers."""

    def made(task: Task, base: int, bound: int) -> Plan:
        return Plan(task.lr, task.hr, task.unit, task.radius or 0, tiles, block, strip, work, 0)

    monkeypatch.setattr(planning, "plan_within", made)


# -- the pixels of the whole -----------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("encoder", ["edsr", "rdn"])
def test_random_plans_give_the_bitwise_same_pixels(
    encoder: str,
    edsr: Upscaler,
    rdn: Upscaler,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    seed: random.Random,
) -> None:
    """Real plans for random bounds, sizes and process counts, down to the smallest, against the
    untiled output.
    """
    upscaler = {"edsr": edsr, "rdn": rdn}[encoder]
    monkeypatch.setattr(plan, "BLOCK_PIXELS", 4096)
    tiled = 0
    for n in range(12):
        lr = (seed.randint(3, 90), seed.randint(60, 120)) if n % 3 else (70, 80)
        hr = tuple(max(2, round(k * seed.uniform(0.6, 3.3))) for k in lr)
        image = picture(*lr, seed=n)
        decoder = upscaler.model.decoder
        # The plan is of what the network sees: an axis that gets shorter is reduced before.
        small = reduced_size(lr, hr)
        workers = seed.choice([1, 2, 4])
        task = Task(upscaler.model.encoder, decoder, small, hr, 3, workers=workers)
        free = smallest_bound(task, 0) if n % 2 else seed.randint(1, 12) * MIB
        monkeypatch.setattr(plan, "STRIP_BYTES", seed.choice([MIB // 8, 8 * MIB]))
        made = make_tight_plan(task, free, seed)
        monkeypatch.setattr(planning, "plan_within", lambda *_, made=made: made)
        tiled += made.tiles != (1, 1)
        render(upscaler, image, tmp_path / "out.npy", size=hr, overwrite=True)
        np.testing.assert_array_equal(
            np.load(tmp_path / "out.npy"), upscaler(image, size=hr), str(made)
        )
    assert tiled > 8


def make_tight_plan(task: Task, free: int, seed: random.Random) -> Plan:
    """A real plan, with more tiles than it needs: images of a test are too small to fill any
    memory.
    """
    made = make_plan(task, max(free, smallest_bound(task, 0)))
    return replace(made, tiles=tuple(min(seed.randint(1, 4), n) for n in task.lr))


def render(upscaler: Upscaler, image: Any, out: Path, **options: Any) -> bool:
    run = {name: options.pop(name) for name in ("resume", "overwrite") if name in options}
    return rendering.run(rendering.prepare(upscaler, image, out, **options), **run)


@pytest.mark.long
@pytest.mark.parametrize("name", ["edsr-baseline", "rdn"])
def test_the_published_encoders_in_tiles_are_bitwise_the_whole(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RDN's 131 convolutions need 20 million weights: one block's worth of pixels, cut once."""
    torch.manual_seed(0)
    model = DIINN(encoder=name).eval()
    upscaler = Upscaler(model, device="cpu")
    image = picture(80, 170) if name != "rdn" else picture(4, 290)
    with_plan(
        monkeypatch,
        tiles=(2, 2) if name != "rdn" else (1, 2),
        block=(200, 200),
        strip=50,
        work=8 * MIB,
    )
    render(upscaler, image, tmp_path / "out.npy", scale=1.25)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), upscaler(image, scale=1.25))


@pytest.mark.parametrize("mode", [1, 2, 4])
def test_all_modes(mode: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upscaler = Upscaler(small_model(mode=mode), device="cpu")
    with_plan(monkeypatch)
    for scale in (2.3, 0.6):
        render(upscaler, picture(), tmp_path / "out.npy", scale=scale, overwrite=True)
        np.testing.assert_array_equal(
            np.load(tmp_path / "out.npy"), upscaler(picture(), scale=scale)
        )


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 4])
def test_grey_alpha_and_depth_are_those_of_the_whole(
    edsr: Upscaler,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    channels: int,
    dtype: type,
) -> None:
    import PIL.Image

    image = picture(channels=channels, dtype=dtype)
    if channels in (2, 4):
        image[20:60, 30:70, -1] = 0  # transparent, so that colour bleeds
    whole_kind: Any = image
    if channels == 1:
        image = whole_kind = image[..., 0]
    elif channels == 2:
        whole_kind = PIL.Image.fromarray(image, "LA") if dtype == np.uint8 else None
    with_plan(monkeypatch)
    np.save(tmp_path / "in.npy", image)
    render(edsr, tmp_path / "in.npy", tmp_path / "out.npy", scale=1.5)
    result = np.load(tmp_path / "out.npy")
    assert result.dtype == dtype
    if whole_kind is not None:
        np.testing.assert_array_equal(result, np.asarray(edsr(whole_kind, scale=1.5)))


@pytest.mark.parametrize("name", ["out.png", "out.tif", "out.zarr", "out.ome.zarr", "out.npy"])
def test_every_format_holds_the_pixels(
    edsr: Upscaler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    with_plan(monkeypatch, tiles=(1, 1), block=(512, 512), strip=100)
    render(edsr, picture(), tmp_path / name, scale=2)
    whole = edsr(picture(), scale=2)
    if name.endswith("zarr"):
        import zarr

        found: Any = zarr.open(tmp_path / name, mode="r")
        found = found["0"] if name == "out.ome.zarr" else found
        assert np.array_equal(np.squeeze(np.asarray(found[:])), whole) or np.array_equal(
            np.moveaxis(np.squeeze(np.asarray(found[:])), 0, -1), whole
        )
    elif name == "out.npy":
        np.testing.assert_array_equal(np.load(tmp_path / name), whole)
    else:
        planes = read_image(tmp_path / name).rgb.permute(1, 2, 0)
        np.testing.assert_array_equal((planes * 255).round().to(torch.uint8).numpy(), whole)
    assert sorted(p.name for p in tmp_path.iterdir()) == [name]


@pytest.mark.parametrize("hr", [(37, 41), (9, 5), (30, 5)])
def test_windows_of_alpha_are_bitwise_the_whole(hr: tuple[int, int], seed: random.Random) -> None:
    alpha = torch.rand(1, 13, 17)
    whole = resize_bicubic(alpha, hr, Window(0, hr[0], 0, hr[1]))
    for _ in range(10):
        (y0, y1), (x0, x1) = (sorted(seed.sample(range(n + 1), 2)) for n in hr)
        window = Window(y0, y1, x0, x1)
        i0, i1, j0, j1 = bicubic_range(window, (13, 17), hr)
        part = resize_bicubic(alpha[:, i0:i1, j0:j1], hr, window, ((13, 17), (i0, j0)))
        assert torch.equal(part, whole[:, y0:y1, x0:x1])


@pytest.mark.parametrize("length", [1 << 17, 3 << 16])
def test_far_corner_of_an_output_of_more_than_2_to_the_31_and_32_elements(length: int) -> None:
    """From a tile of the features, against the definition."""
    decoder = make_decoder(3, width=64)
    lr = (1 << 13, 1 << 13)
    size = (length, length)
    assert size[0] * size[1] * 3 > 1 << 32
    window = (length - 5, length, length - 9, length)
    i0, i1, j0, j1 = decoder.lr_window(window, lr, size)
    corner = torch.randn(1, 64, i1 - i0, j1 - j0)
    with torch.no_grad():
        ours = decoder(corner, size, window=window, tile=(lr, (i0, j0)))
    # The definition on the corner alone, as the corner of a smaller image at the same scale.
    n = i1 - i0
    small = n * length // lr[0], n * length // lr[1]
    cut = (small[0] - 5, small[0], small[1] - 9, small[1])
    with torch.no_grad():
        exact = oracle(decoder, corner, small, cut)
    torch.testing.assert_close(ours.double(), exact, rtol=1e-4, atol=1e-4)


def test_a_smaller_halo_is_close_and_says_how_far_off(
    edsr: Upscaler,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with_plan(monkeypatch)
    np.save(tmp_path / "in.npy", picture())
    render(edsr, tmp_path / "in.npy", tmp_path / "out.npy", scale=2, halo=2)
    assert "a halo of 2 LR pixels is an approximation: off by up to" in caplog.text
    said = float(caplog.text.split("off by up to ")[1].split()[0])
    off = np.abs(np.load(tmp_path / "out.npy").astype(int) - edsr(picture(), scale=2)).max() / 255
    assert 0 < off <= 3 * said + 1 / 255 and said <= off + 1 / 255


# -- nothing is lost -------------------------------------------------------------------------------

CHILD = """
    import sys, time
    sys.path.insert(0, {root!r})
    import numpy as np
    from tests.helpers.small_models import small_model, picture
    from diinn_fast.inference import Upscaler, rendering
    from diinn_fast.inference.plan import Plan
    from diinn_fast.inference.rendering import execute, loop, planning, run, writer
    writer.FLUSH_SECONDS = 0.0
    planning.plan_within = lambda t, base, bound: Plan(
        t.lr, t.hr, t.unit, t.radius, (3, 3), (20, 30), 8, 1 << 16, 0
    )
    upscaler = Upscaler(small_model(), device="cpu")
    spec = rendering.prepare(upscaler, {picture!r}, {out!r}, scale=2)
    print("ready", flush=True)
    {extra}
    run(spec, resume=True)
    print("done", flush=True)
"""


def child(tmp_path: Path, out: Path, extra: str = "", **options: Any) -> subprocess.Popen[str]:
    """A process that renders in 45 blocks, each recorded at once, resuming what is there."""
    code = textwrap.dedent(CHILD).format(
        root=str(Path(__file__).parents[2]),
        picture=str(tmp_path / "in.npy"),
        out=str(out),
        extra=extra,
    )
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        **options,
    )


FORK = """
    import os, random, signal
    rng, real = random.Random(3), loop.render_block
    def slow(*arguments):
        time.sleep(0.05)  # 45 blocks take longer than all the time until the last kill
        return real(*arguments)
    loop.render_block = slow
    for n in range(20):
        process = os.fork()
        if process == 0:
            try:
                run(spec, resume=True)
            except BaseException as error:
                print(repr(error), flush=True)
                os._exit(1)
            os._exit(0)
        time.sleep(rng.uniform(0.005, 0.1))
        os.kill(process, signal.SIGKILL)
        ended = os.waitpid(process, 0)[1]
        print("killed" if os.WIFSIGNALED(ended) else "exit %d" % os.WEXITSTATUS(ended), flush=True)
        if ended == 0:  # it was done before the kill, on a machine that let it run on
            print("done", flush=True)
            os._exit(0)
"""


@pytest.mark.long
@pytest.mark.parametrize("name", ["out.npy", "out.tif"])
def test_twenty_kills_at_random_moments_and_the_file_is_bitwise_right(
    edsr: Upscaler, tmp_path: Path, name: str
) -> None:
    """One render, killed (SIGKILL) by its parent twenty times, each time resumed."""
    np.save(tmp_path / "in.npy", picture(50, 60))
    render(edsr, tmp_path / "in.npy", tmp_path / f"whole{Path(name).suffix}", scale=2)
    out = tmp_path / name
    process = child(tmp_path, out, extra=textwrap.dedent(FORK))
    said, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert said.count("killed") >= 10 and "exit 1" not in said and said.endswith("done\n"), (
        said + err
    )
    assert pixels(out).tobytes() == pixels(tmp_path / f"whole{Path(name).suffix}").tobytes()
    assert not Path(f"{out}.part").exists()


def pixels(path: Path) -> np.ndarray:
    return np.load(path) if path.suffix == ".npy" else read_image(path).rgb.numpy()


STOP = """
    real, count = loop.render_block, 0
    def block(*arguments):
        global count
        count += 1
        if count == 10:
            print("tenth", flush=True)
            time.sleep(60)
        return real(*arguments)
    loop.render_block = block
"""


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_keeps_all_that_was_done(
    edsr: Upscaler, tmp_path: Path, number: signal.Signals
) -> None:
    np.save(tmp_path / "in.npy", picture(50, 60))
    out = tmp_path / "out.npy"
    process = child(
        tmp_path,
        out,
        extra=textwrap.dedent(STOP),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(2)] == ["ready\n", "tenth\n"]
    time.sleep(0.2)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode not in (0, None)
    assert f"interrupted, {out}.part keeps what is done: run it again with --resume" in err
    state = read_journals(Path(f"{out}.part"))
    assert state is not None and len(state.done) == 9 and not out.exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB; where the tests may not mount one, a folder in whose files the
    system refuses more.
    """
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", disk], check=False, capture_output=True
    )
    yield disk
    if mounted.returncode == 0:
        subprocess.run(["umount", disk], check=True)


FULL = """
    import errno, os
    execute.check_disk = lambda spec, part: None
    if not os.path.ismount({disk!r}):
        real = os.pwrite
        def pwrite(descriptor, data, offset):
            if offset + len(data) > 40_000:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(descriptor, data, offset)
        os.pwrite = pwrite
"""


@pytest.mark.long
def test_a_full_disk_keeps_all_that_was_done(
    edsr: Upscaler, tmp_path: Path, small_disk: Path
) -> None:
    np.save(tmp_path / "in.npy", picture(120, 150))  # 216 KB of output
    render(edsr, tmp_path / "in.npy", tmp_path / "whole.npy", scale=2)
    out = small_disk / "out.npy"
    process = child(tmp_path, out, extra=textwrap.dedent(FULL.format(disk=str(small_disk))))
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    last = err.strip().splitlines()[-1]
    assert "the disk is full" in last and f"{out}.part keeps what was done" in last, err
    state = read_journals(Path(f"{out}.part"))
    assert state is not None and not out.exists()
    if os.path.ismount(small_disk):
        subprocess.run(["mount", "-o", "remount,size=4m", small_disk], check=True)
    process = child(tmp_path, out)
    assert process.communicate(timeout=60)[0].endswith("done\n")
    np.testing.assert_array_equal(np.load(out), np.load(tmp_path / "whole.npy"))


def test_too_little_disk_is_refused_before_the_work(
    edsr: Upscaler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(UpscaleError, match=r"needs up to .* of disk and 1000 B are free"):
        render(edsr, picture(), tmp_path / "out.tif", scale=2)
    assert list(tmp_path.iterdir()) == []


def test_a_vanished_picture_keeps_all_that_was_done(
    edsr: Upscaler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_plan(monkeypatch)
    np.save(tmp_path / "in.npy", picture())
    out = tmp_path / "out.npy"
    spec = rendering.prepare(edsr, tmp_path / "in.npy", out, scale=2)
    real = spec.source.read
    reads = []

    def read(*window: Any) -> Any:
        reads.append(window)
        if len(reads) > 2:
            os.truncate(tmp_path / "in.npy", 500)
        return real(*window)

    monkeypatch.setattr(spec.source, "read", read)
    with pytest.raises(UnfinishedError, match=r"keeps what is done: run it again with --resume"):
        rendering.run(spec)
    state = read_journals(rendering.part_of(out))
    assert state is not None and state.done and not out.exists()


def test_nan_in_the_output_keeps_all_that_was_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upscaler = Upscaler(small_model(), device="cpu")
    with_plan(monkeypatch)
    with torch.no_grad():
        upscaler.model.decoder.last_layer.bias[0] = float("nan")
    with pytest.raises(FloatingPointError, match=r"NaN or infinity in .*keeps what is done"):
        monkeypatch.setattr(planning, "measure_rates", lambda *_: (1.0, 1.0))
        render(upscaler, picture(), tmp_path / "out.npy", scale=2)


def test_out_of_memory_is_retried_once_with_half_the_tile(
    edsr: Upscaler,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with_plan(monkeypatch)
    real = Upscaler.encode
    largest: list[int] = []

    def encode(self: Upscaler, rgb: Any, work: Any = None) -> Any:
        if largest and rgb[0].numel() >= max(largest):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        largest.append(rgb[0].numel()) if not largest else None
        return real(self, rgb, work)

    monkeypatch.setattr(planning, "measure_rates", lambda *_: (1.0, 1.0))
    whole = edsr(picture(), scale=2)
    largest.append(4200)
    monkeypatch.setattr(Upscaler, "encode", encode)
    with_plan(monkeypatch, tiles=(1, 2), block=(20, 110))
    render(edsr, picture(), tmp_path / "out.npy", scale=2)
    assert "trying tiles of half the size" in caplog.text
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), whole)
    largest[0] = 1
    with pytest.raises(UpscaleError, match=r"out of memory: give a smaller --max-memory"):
        render(edsr, picture(), tmp_path / "out.npy", scale=2, overwrite=True)


# -- states and refusals ---------------------------------------------------------------------------


@pytest.fixture
def interrupted(edsr: Upscaler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An output whose render has stopped after a few blocks, each recorded."""
    with_plan(monkeypatch)
    monkeypatch.setattr(writer, "FLUSH_SECONDS", 0.0)
    real = loop.render_block
    count = 0

    def block(*arguments: Any) -> Any:
        nonlocal count
        count += 1
        if count > 5:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "render_block", block)
        with pytest.raises(KeyboardInterrupt):
            render(edsr, picture(), tmp_path / "out.png", scale=2)
    return tmp_path / "out.png"


def test_a_finished_job_is_resumed_by_doing_nothing(edsr: Upscaler, tmp_path: Path) -> None:
    for name in ("out.png", "out.tif", "out.npy", "out.zarr"):
        assert render(edsr, picture(), tmp_path / name, scale=2)
        assert not render(edsr, picture(), tmp_path / name, scale=2, resume=True)
        with pytest.raises(ImageError, match="already exists"):
            render(edsr, picture(), tmp_path / name, scale=2)
        with pytest.raises(ImageError, match="already exists"):
            render(edsr, picture(), tmp_path / name, scale=3, resume=True)
        assert render(edsr, picture(), tmp_path / name, scale=3, resume=True, overwrite=True)


def test_only_what_is_missing_is_made(
    edsr: Upscaler, interrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = loop.render_block
    made = []
    monkeypatch.setattr(loop, "render_block", lambda *a: made.append(a[-1]) or real(*a))
    state = read_journals(Path(f"{interrupted}.part"))
    assert state is not None and len(state.done) == 5
    render(edsr, picture(), interrupted, scale=2, resume=True)
    blocks = sum(len(state.plan.blocks(tile)) for tile in state.plan.tile_windows())
    assert len(made) == blocks - 5
    planes = read_image(interrupted).rgb.permute(1, 2, 0)
    np.testing.assert_array_equal(
        (planes * 255).round().to(torch.uint8).numpy(), edsr(picture(), scale=2)
    )


def test_an_interrupted_job_is_neither_replaced_nor_mixed_unasked(
    edsr: Upscaler, interrupted: Path
) -> None:
    with pytest.raises(
        UpscaleError, match=r"pass --resume to continue it or --overwrite to begin anew"
    ):
        render(edsr, picture(), interrupted, scale=2)
    for other in ({"scale": 3}, {"scale": 2, "halo": 1}):
        with pytest.raises(UpscaleError, match=r"another job: pass --overwrite"):
            render(edsr, picture(), interrupted, resume=True, **other)
    with pytest.raises(UpscaleError, match=r"another job"):
        render(edsr, picture(seed=1), interrupted, scale=2, resume=True)
    with pytest.raises(UpscaleError, match=r"another job"):
        render(
            Upscaler(small_model(mode=1), device="cpu"),
            picture(),
            interrupted,
            scale=2,
            resume=True,
        )
    assert render(edsr, picture(seed=1), interrupted, scale=2, overwrite=True)


def test_a_torn_line_does_not_count(edsr: Upscaler, interrupted: Path) -> None:
    journal = Path(f"{interrupted}.part") / "journal-0.jsonl"
    whole = journal.read_bytes()
    for torn in (whole + b'{"done":[[1,', whole[:-3], whole + b"\0\0\0\n{}"):
        journal.write_bytes(torn)
        state = read_journals(journal.parent)
        assert state is not None and len(state.done) in (4, 5)
    Journal(journal.parent, 0, state.job, state.plan).close()
    assert all(json.loads(line) for line in journal.read_bytes().splitlines())
    journal.write_bytes(whole[:40])
    assert read_journals(journal.parent) is None
    assert render(edsr, picture(), interrupted, scale=2, resume=True), "it begins anew"


def test_what_is_not_ours_is_left_alone(edsr: Upscaler, tmp_path: Path) -> None:
    other = tmp_path / "out.png.part"
    other.mkdir()
    (other / "thesis.tex").write_text("years of work")
    with pytest.raises(UpscaleError, match=r"in the way and not ours"):
        render(edsr, picture(), tmp_path / "out.png", scale=2, overwrite=True)
    assert (other / "thesis.tex").exists()


def test_refusals(edsr: Upscaler, tmp_path: Path) -> None:
    with pytest.raises(UpscaleError, match=r"cannot be written piece by piece: name it"):
        render(edsr, picture(), tmp_path / "out.jpg", scale=2)
    with pytest.raises(UpscaleError, match=r"self-ensemble needs the whole picture"):
        render(
            Upscaler(small_model(), device="cpu", self_ensemble=True),
            picture(),
            tmp_path / "out.png",
        )
    with pytest.raises(UpscaleError, match=r"halo must be"):
        render(edsr, picture(), tmp_path / "out.png", halo=-1)
    with pytest.raises(ImageError, match=r"is not a folder"):
        render(edsr, picture(), tmp_path / "nowhere" / "out.png")
    with pytest.raises(UpscaleError, match=r"the smallest bound that works is \d+ MiB"):
        render(edsr, picture(), tmp_path / "out.png", max_memory="100MiB")


def test_the_public_function(tmp_path: Path) -> None:
    out = render_public(
        picture(),
        tmp_path / "out.npy",
        model=small_model(),
        scale=2,
        device="cpu",
        max_memory="2GiB",
    )
    np.testing.assert_array_equal(
        np.load(out), Upscaler(small_model(), device="cpu")(picture(), scale=2)
    )


def test_pyramid_and_compression_are_plain_arguments(edsr: Upscaler, tmp_path: Path) -> None:
    import tifffile

    small = edsr.render(picture(), tmp_path / "a.tif", scale=6, pyramid=True)
    large = edsr.render(picture(), tmp_path / "b.tif", scale=6, compress=False)
    with tifffile.TiffFile(small) as file:
        assert [level.shape[:2] for level in file.series[0].levels] == PYRAMID
    with tifffile.TiffFile(large) as file:
        assert len(file.series[0].levels) == 1 and file.pages[0].compression == 1


def test_the_three_verbs_give_the_same_pixels(edsr: Upscaler, tmp_path: Path) -> None:
    whole = edsr(picture(), scale=1.5)
    rendered = np.load(edsr.render(picture(), tmp_path / "out.npy", scale=1.5))
    with edsr.open(picture()) as view:
        np.testing.assert_array_equal(view.render(None, whole.shape[:2]), whole)
    np.testing.assert_array_equal(rendered, whole)


def test_parts_of_an_axis_begin_at_multiples_of_the_unit() -> None:
    assert cuts(100, 16, 3) == [0, 32, 64, 100]
    assert cuts(7, 1, 2) == [0, 3, 7]
