"""Several processes that share a view: dask's workers make what one process renders."""

from __future__ import annotations

import os
from pathlib import Path

import dask.array
import numpy as np
import PIL.Image
import pytest
import zarr
from dask.distributed import Client, LocalCluster

import diinn_fast
from tests.helpers.known_models import random_model, save
from tests.helpers.small_models import picture

SIZE = (60, 110)


@pytest.fixture
def view(tmp_path: Path) -> diinn_fast.View:
    PIL.Image.fromarray(picture(24, 40)).save(tmp_path / "in.png")
    weights = save(random_model(), tmp_path / "weights")
    return diinn_fast.open(tmp_path / "in.png", weights, device="cpu")


@pytest.mark.long
def test_two_processes_write_into_zarr_what_one_renders(
    view: diinn_fast.View, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(diinn_fast.__file__).parents[1]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")]))
    lazy = dask.array.from_array(view.at(SIZE), chunks=(25, 50, 3))
    out = tmp_path / "out.zarr"
    cluster = LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    )
    with cluster, Client(cluster):
        lazy.to_zarr(str(out))
    np.testing.assert_array_equal(zarr.open(str(out), mode="r")[:], view.render(None, SIZE))


def test_threads_share_it_too(view: diinn_fast.View) -> None:
    lazy = dask.array.from_array(view.at(SIZE), chunks=(25, 50, 3))
    np.testing.assert_array_equal(
        lazy.compute(scheduler="threads", num_workers=4), view.render(None, SIZE)
    )
    assert view.encoded == 1


def test_results_of_other_pictures_sizes_and_weights_have_other_names(
    view: diinn_fast.View, tmp_path: Path
) -> None:
    def name(view: diinn_fast.View, size: tuple[int, int] = SIZE) -> str:
        return str(dask.array.from_array(view.at(size)).name)

    same = diinn_fast.open(tmp_path / "in.png", tmp_path / "weights", device="cpu")
    assert name(same) == name(view)
    others = [
        diinn_fast.open(picture(24, 40), tmp_path / "weights", device="cpu"),
        diinn_fast.open(tmp_path / "in.png", random_model(mode=4), device="cpu"),
    ]
    assert len({name(view), name(view, (60, 111)), *map(name, others)}) == 4
