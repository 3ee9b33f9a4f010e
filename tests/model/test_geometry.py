"""Index and offset formulas against PyTorch's own nearest-exact and against exact rational
arithmetic.
"""

from __future__ import annotations

import random
from fractions import Fraction
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from diinn_fast import geometry


def torch_nearest(n_in: int, n_out: int) -> torch.Tensor:
    """The index torch uses, read off an index image; channels_last float32 with C > 3 follows the
    formula.
    """
    image = torch.arange(n_in, dtype=torch.float32).view(1, 1, n_in, 1).expand(1, 4, n_in, 2)
    image = image.contiguous(memory_format=torch.channels_last)
    return F.interpolate(image, size=(n_out, 2), mode="nearest-exact")[0, 0, :, 0].long()


def check_pair(n_in: int, n_out: int) -> None:
    index = geometry.nearest_index(0, n_out, n_in, n_out)
    assert torch.equal(index, torch_nearest(n_in, n_out)), (n_in, n_out)


def test_index_is_torchs_nearest_exact_for_small_sizes() -> None:
    for n_in in range(1, 71):
        for n_out in range(1, 101):
            check_pair(n_in, n_out)


def test_index_is_torchs_nearest_exact_for_large_sizes(seed: random.Random) -> None:
    for _ in range(3000):
        check_pair(int(2 ** seed.uniform(0, 12)), int(2 ** seed.uniform(0, 13)))
    for _ in range(60):
        check_pair(seed.randint(1, 16384), seed.randint(8192, 16384))


@pytest.mark.parametrize(("n_in", "n_out"), [(4, 166), (2, 41), (4, 82)])
def test_index_where_torchs_contiguous_path_rounds_differently(n_in: int, n_out: int) -> None:
    check_pair(n_in, n_out)


def test_ranges_are_parts_of_the_whole(seed: random.Random) -> None:
    for _ in range(300):
        n_in = seed.randint(1, 500)
        n_out = seed.randint(1, 3000)
        start = seed.randrange(n_out)
        stop = seed.randint(start + 1, n_out)
        whole = geometry.nearest_index(0, n_out, n_in, n_out)
        part = geometry.nearest_index(start, stop, n_in, n_out)
        assert torch.equal(part, whole[start:stop])
        assert geometry.lr_range(start, stop, n_in, n_out) == (int(part[0]), int(part[-1]) + 1)
        offset = geometry.local_offset(0, n_out, whole, n_in, n_out, torch.float32)
        assert torch.equal(
            geometry.local_offset(start, stop, part, n_in, n_out, torch.float32), offset[start:stop]
        )


def test_offset_is_the_exact_distance_of_pixel_centres(seed: random.Random) -> None:
    for _ in range(200):
        n_in = seed.randint(1, 3000)
        n_out = seed.randint(1, 16384)
        y = seed.randrange(n_out)
        index = geometry.nearest_index(y, y + 1, n_in, n_out)
        i = int(index)
        u = Fraction(-1) + Fraction(2 * y + 1, n_out)
        v = Fraction(-1) + Fraction(2 * i + 1, n_in)
        exact = float((u - v) * n_in)
        for dtype, tolerance in ((torch.float64, 1e-15), (torch.float32, 6e-8)):
            got = float(geometry.local_offset(y, y + 1, index, n_in, n_out, dtype))
            assert got == pytest.approx(exact, abs=tolerance)
        assert abs(exact) <= 1 + 1e-3


def test_float32_rounding_in_plain_python(seed: random.Random) -> None:
    for _ in range(2000):
        value = seed.uniform(0, 1) * 2 ** seed.randint(-20, 24)
        assert geometry.round_float32(value) == torch.tensor(value, dtype=torch.float32).item()


@pytest.mark.parametrize(
    ("lr", "scale", "size"),
    [
        ((10, 7), 3.7, (37, 26)),
        ((5, 5), 2.5, (13, 13)),
        ((3, 3), 0.01, (1, 1)),
        ((4, 6), (2, 0.5), (8, 3)),
    ],
)
def test_size_for_scale_rounds_half_up_and_keeps_a_pixel(
    lr: tuple[int, int], scale: float | tuple[int, float], size: tuple[int, int]
) -> None:
    assert geometry.size_for_scale(lr, scale) == size


@pytest.mark.parametrize("scale", [0, -1, float("nan"), float("inf"), (2, 0), (1, 2, 3)])
def test_size_for_scale_refuses(scale: float | tuple[int, int] | tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="scale must be"):
        geometry.size_for_scale((4, 4), scale)


@pytest.mark.parametrize(
    "window", [(0, 0, 0, 4), (-1, 2, 0, 4), (0, 9, 0, 4), (0, 4, 3, 3), (0, 4, 0)]
)
def test_windows_outside_the_output_are_refused(
    window: tuple[int, int, int, int] | tuple[int, int, int],
) -> None:
    with pytest.raises(ValueError, match="window"):
        geometry.check_window(window, (8, 8))


def test_sizes_that_cannot_be_exact_are_refused() -> None:
    with pytest.raises(ValueError, match="HR height"):
        geometry.check_size((geometry.MAX_LENGTH + 1, 4), (4, 4))
    with pytest.raises(ValueError, match="HR width"):
        geometry.check_size((4, 0), (4, 4))


def test_offsets_are_divided_by_tensors() -> None:
    """By a Python number, PyTorch's CUDA kernel multiplies with the rounded reciprocal: another
    last bit.
    """
    divisors = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if func is torch.ops.aten.div.Tensor:
                divisors.append(args[1])
            return func(*args, **(kwargs or {}))

    index = geometry.nearest_index(0, 9, 4, 9)
    with Watch():  # type: ignore[no-untyped-call]
        got = geometry.local_offset(0, 9, index, 4, 9, torch.float32)
    assert [d.shape for d in divisors] == [got.shape]
