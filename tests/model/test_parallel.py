"""Two processes share a model's work or its weights, with the gradients of one process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from diinn_fast import DIINN
from tests.helpers.published import pair
from tests.helpers.threads import one_thread

ROOT = Path(__file__).parents[2]
SIZE = (9, 13)

WORKER = """
import sys, warnings
from pathlib import Path
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from tests.model.test_parallel import SIZE, model

torch.set_num_threads(1)
dist.init_process_group("gloo")
mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
x = torch.load("x.pt")[dist.get_rank()][None]


def replicated(net):
    return DistributedDataParallel(net)


def sharded(net):
    return fully_shard(net, mesh=mesh)


def sharded_by_part(net):
    for part in (*net.encoder.RDBs, net.encoder, net.decoder):
        fully_shard(part, mesh=mesh)
    return fully_shard(net, mesh=mesh)


def sharded_by_layer(net):
    convolutions = [m for m in net.modules() if isinstance(m, torch.nn.Conv2d)]
    for layer in (*convolutions, *net.decoder.K, *net.decoder.Q):
        fully_shard(layer, mesh=mesh)
    return fully_shard(net, mesh=mesh)


for way in (replicated, sharded, sharded_by_part, sharded_by_layer):
    net = way(model())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with torch.no_grad():
            net(x, SIZE)
        net(x, SIZE).square().mean().backward()
    gradients = {}
    for name, parameter in net.named_parameters():
        grad = parameter.grad
        whole = grad.full_tensor() if hasattr(grad, "full_tensor") else grad
        gradients[name.removeprefix("module.")] = whole
    said = [str(each.message) for each in caught if "stride" in str(each.message)]
    if dist.get_rank() == 0:
        torch.save({"gradients": gradients, "said": said}, f"{way.__name__}.pt")
dist.destroy_process_group()
"""


def model() -> DIINN:
    torch.manual_seed(0)
    return pair()[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the two processes found, each way in its own file."""
    folder = tmp_path_factory.mktemp("parallel")
    torch.manual_seed(1)
    torch.save(torch.rand(2, 3, 5, 6) * 2 - 1, folder / "x.pt")
    (folder / "worker.py").write_text(WORKER)
    starter = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "worker.py"]
    done = subprocess.run(
        [sys.executable, *starter],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.long
@pytest.mark.parametrize("way", ["replicated", "sharded", "sharded_by_part", "sharded_by_layer"])
def test_gradients_are_those_of_one_process(way: str, folder: Path) -> None:
    net = model()
    with one_thread():
        net(torch.load(folder / "x.pt"), SIZE).square().mean().backward()
    found = torch.load(folder / f"{way}.pt")
    assert found["said"] == []  # of gradients that have other strides than their weights
    for name, parameter in net.named_parameters():
        got = found["gradients"][name]
        assert parameter.grad is not None
        limit = 1e-4 * parameter.grad.abs().max() + 1e-8
        assert (got - parameter.grad).abs().max() <= limit, name
