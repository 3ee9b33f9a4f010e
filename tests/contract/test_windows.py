"""Windows: any part of the output is that part of the whole, however the work is cut."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from random import Random

import pytest
import torch
from torch import Tensor

from diinn_fast.geometry import Window
from tests.contract.targets import Target, every_form, every_mode
from tests.helpers.problems import Case, decoder_of, features_of


def same(target: Target, part: Tensor, whole: Tensor) -> None:
    """To the bit, or nearly where what is around the kernels is not so exact."""
    if target.exact_cuts and target.device == "cpu":
        assert torch.equal(part, whole)
    else:
        torch.testing.assert_close(part, whole, rtol=target.loose, atol=target.loose)


def cuts(rng: Random, length: int, count: int) -> list[tuple[int, int]]:
    """Where an axis is cut, at random places."""
    return list(pairwise(sorted({0, length, *(rng.randint(0, length) for _ in range(count))})))


def geometries(target: Target, init_q: bool) -> list[tuple[int, int, int, int]]:
    """Up- and down-scaling (the direct form, and so the only one that init_q needs)."""
    up = (3, 4, 9, 11) if target.small else (7, 8, 29, 37)
    down = (4, 5, 3, 4)
    if "direct" not in target.forms:
        return [up]
    return [down] if target.small and init_q else [up, down]


@every_mode(few=True)
def test_parts_of_the_output_are_those_of_the_whole(
    target: Target, mode: int, init_q: bool, seed: Random
) -> None:
    """Rows, columns, single pixels, images of a batch, and any number of queries at a time."""
    for geometry in geometries(target, init_q):
        case = Case(target.network(mode, init_q), geometry, 2)
        decoder = decoder_of(case.network)
        features = features_of(case).detach()
        height, width = case.size
        with torch.no_grad():
            whole = decoder(features, case.size, backend=target.backend)
            y = seed.randrange(height)
            x = seed.randrange(width)
            windows = [
                (y0, y1, x0, x1)
                for y0, y1 in cuts(seed, height, 1 if target.small else 3)
                for x0, x1 in cuts(seed, width, 1 if target.small else 3)
            ]
            for y0, y1, x0, x1 in [*windows, (y, y + 1, x, x + 1), (height - 1, height, 0, 1)]:
                part = decoder(features, case.size, window=(y0, y1, x0, x1), backend=target.backend)
                same(target, part, whole[:, :, y0:y1, x0:x1])
            for chunk in (1, 5) if height * width < 20 else (50, 10**6):
                same(target, decoder(features, case.size, chunk, backend=target.backend), whole)
            same(target, decoder(features[1:], case.size, backend=target.backend), whole[1:])


@every_mode(few=True)
def test_a_tile_of_the_features_gives_the_windows_that_it_holds(
    target: Target, mode: int, init_q: bool, seed: Random
) -> None:
    """It holds no more rows and columns than `lr_window` names; all else is as good as lost."""
    for geometry in geometries(target, init_q):
        case = Case(target.network(mode, init_q), geometry, 2)
        decoder = decoder_of(case.network)
        features = features_of(case).detach()
        with torch.no_grad():
            whole = decoder(features, case.size, backend=target.backend)
            for y0, y1 in cuts(seed, case.size[0], 1 if target.small else 2):
                for x0, x1 in cuts(seed, case.size[1], 1 if target.small else 2):
                    window = (y0, y1, x0, x1)
                    i0, i1, j0, j1 = decoder.lr_window(window, case.lr, case.size)
                    part = decoder(
                        features[:, :, i0:i1, j0:j1].clone(),
                        case.size,
                        window=window,
                        tile=(case.lr, (i0, j0)),
                        backend=target.backend,
                    )
                    same(target, part, whole[:, :, y0:y1, x0:x1])


@every_form(lambda target: target.exact_cuts, few=True)
def test_parts_of_an_operators_window_have_its_bits(target: Target, form: str, mode: int) -> None:
    """Rows, columns and single queries, from the same source."""
    problem = target.operands(form, mode, small=True)
    assert problem.window is not None
    top, bottom, left, right = problem.window
    whole = problem.decode(target.backend)
    row = Window(top, top + 1, left, right)
    block = Window(top + 2, bottom, left + 1, left + 3)
    corner = Window(bottom - 1, bottom, right - 1, right)
    for window in (row, block, corner):
        part = replace(problem, window=window).decode(target.backend)
        rows = slice(window.y0 - top, window.y1 - top)
        columns = slice(window.x0 - left, window.x1 - left)
        assert torch.equal(part, whole[:, :, rows, columns])


@every_form(lambda target: target.backend != "eager", few=True)
def test_an_operator_whose_window_leaves_the_source_is_refused(
    target: Target, form: str, mode: int
) -> None:
    """Where a kernel would read what is not its own."""
    problem = target.operands(form, mode, small=True)
    cropped = problem.source[:, :-1].contiguous()
    with pytest.raises(IndexError, match="outside the source"):
        replace(problem, source=cropped).decode(target.backend)
