"""DIINN as a drop-in: names, counts, checkpoints, dtypes, copies, compilation, several
processes.
"""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import nn

from diinn_fast import DIINN, CheckpointError
from diinn_fast.model import bundled_names

PARAMETERS = {  # of the official model with RDN
    (1, False): 22_518_211,
    (1, True): 22_667_203,
    (2, False): 22_960_579,
    (2, True): 23_109_571,
    (3, False): 22_960_579,
    (3, True): 23_109_571,
    (4, False): 22_966_723,
    (4, True): 23_115_715,
}


def official_keys(mode: int, init_q: bool) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the official module tree, written down from its definition."""
    keys: dict[str, tuple[int, ...]] = {}

    def conv(name: str, out: int, into: int, kernel: int) -> None:
        keys[f"{name}.weight"] = (out, into, kernel, kernel)
        keys[f"{name}.bias"] = (out,)

    conv("encoder.SFENet1", 64, 3, 3)
    conv("encoder.SFENet2", 64, 64, 3)
    for block in range(16):
        for c in range(8):
            conv(f"encoder.RDBs.{block}.convs.{c}.conv.0", 64, 64 + 64 * c, 3)
        conv(f"encoder.RDBs.{block}.LFF", 64, 64 + 64 * 8, 1)
    conv("encoder.GFF.0", 64, 16 * 64, 1)
    conv("encoder.GFF.1", 64, 64, 3)
    if init_q:
        conv("decoder.first_layer.0", 576, 3, 1)
    for i in range(4):
        recurrent = 256 if mode == 1 else 256 + 576
        conv(f"decoder.K.{i}.0", 256, recurrent if i else 576, 1)
        conv(f"decoder.Q.{i}.0", 256, 256 if i else (576 if init_q else 3), 1)
    conv("decoder.last_layer", 3, 256, 3 if mode == 4 else 1)
    return keys


def small(mode: int = 3, init_q: bool = False) -> DIINN:
    return DIINN(mode, init_q, encoder="edsr-baseline")


@pytest.mark.parametrize(("mode", "init_q"), PARAMETERS)
def test_keys_shapes_and_parameter_counts_are_the_official_ones(mode: int, init_q: bool) -> None:
    with torch.device("meta"):
        model = DIINN(mode, init_q)
    assert {k: tuple(v.shape) for k, v in model.state_dict().items()} == official_keys(mode, init_q)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[mode, init_q]


def test_defaults_are_the_papers_final_model() -> None:
    with torch.device("meta"):
        model = DIINN()
    assert (model.decoder.mode, model.decoder.init_q, type(model.encoder).__name__) == (
        3,
        False,
        "RDN",
    )
    assert sum(p.numel() for p in model.encoder.parameters()) == 21_973_952
    assert sum(p.numel() for p in model.decoder.parameters()) == 986_627


def test_forward_takes_size_bsize_or_scale() -> None:
    model = small().eval()
    x = torch.randn(2, 3, 6, 5)
    with torch.no_grad():
        want = model(x, (22, 19))
        assert want.shape == (2, 3, 22, 19)
        torch.testing.assert_close(model(x, (22, 19), 30), want, rtol=0, atol=0)
        torch.testing.assert_close(model(x, scale=3.7), want, rtol=0, atol=0)
        assert model(x, scale=(2, 0.5)).shape == (2, 3, 12, 3)
    for arguments in ({}, {"size": (4, 4), "scale": 2}):
        with pytest.raises(ValueError, match="either size"):
            model(x, **arguments)


def test_any_encoder_module() -> None:
    class Wide(nn.Conv2d):  # an encoder states its channels
        pass

    model = DIINN(encoder=nn.Conv2d(3, 64, 3, padding=1))
    assert model(torch.randn(1, 3, 4, 4), (8, 8)).shape == (1, 3, 8, 8)
    model = DIINN(encoder=Wide(3, 24, 3, padding=1))
    assert model.decoder.in_channels == 24 and model(torch.randn(1, 3, 4, 4), (8, 8)).shape == (
        1,
        3,
        8,
        8,
    )
    with pytest.raises(ValueError, match="edsr-baseline"):
        DIINN(encoder="resnet")


def test_save_pretrained_with_a_foreign_encoder_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="state_dict"):
        DIINN(encoder=nn.Conv2d(3, 64, 3, padding=1)).save_pretrained(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes(dtype: torch.dtype) -> None:
    model = small().eval()
    x = torch.randn(1, 3, 6, 7)
    with torch.no_grad():
        want = model(x, (13, 15))
        got = model.to(dtype)(x.to(dtype), (13, 15))
    assert got.dtype == dtype
    assert (got.double() - want).abs().max() < {
        torch.float64: 1e-5,
        torch.bfloat16: 0.05,
        torch.float16: 0.01,
    }[dtype]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_trains(dtype: torch.dtype) -> None:
    model = small()
    x = torch.randn(2, 3, 6, 7)
    with torch.autocast("cpu", dtype):
        out = model(x, (13, 15))
    assert out.dtype == dtype
    out.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_channels_last_batches_and_copies_agree() -> None:
    model = small().eval()
    x = torch.randn(3, 3, 6, 7)
    with torch.no_grad():
        want = model(x, (13, 15))
        singles = torch.cat([model(v[None], (13, 15)) for v in x])
        torch.testing.assert_close(singles, want, rtol=1e-5, atol=1e-6)
        last = model.to(memory_format=torch.channels_last)(  # type: ignore[call-overload]
            x.contiguous(memory_format=torch.channels_last), (13, 15)
        )
        torch.testing.assert_close(last, want, rtol=1e-5, atol=1e-6)
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            torch.testing.assert_close(twin(x, (13, 15)), want, rtol=1e-5, atol=1e-6)
        twin = small()
        twin.load_state_dict(model.state_dict())
        torch.testing.assert_close(twin.eval()(x, (13, 15)), want, rtol=1e-5, atol=1e-6)


def test_writes_through_data_are_seen() -> None:
    """EMA code writes parameters through ``.data``: nothing packed may be stale."""
    model = small().eval()
    x = torch.randn(1, 3, 4, 4)
    with torch.no_grad():
        before = model(x, (8, 8))
        for parameter in model.decoder.parameters():
            parameter.data.mul_(0.5)
        after = model(x, (8, 8))
        fresh = small().eval()
        fresh.load_state_dict(model.state_dict())
        torch.testing.assert_close(after, fresh(x, (8, 8)), rtol=0, atol=0)
    assert not torch.allclose(before, after)


def test_compile_of_the_whole_model() -> None:
    model = small()
    x = torch.randn(1, 3, 5, 6)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, (11, 13)), model(x, (11, 13)), rtol=1e-4, atol=1e-5)
    compiled(x, (11, 13)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def worker(rank: int, store: str, result: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = nn.parallel.DistributedDataParallel(small())
    x = torch.randn(2, 3, 6, 6)
    target = torch.randn(2, 3, 12, 12)
    (model(x[rank : rank + 1], (12, 12)) - target[rank : rank + 1]).square().mean().backward()
    if rank == 0:
        torch.save([p.grad for p in model.parameters()], result)
    dist.destroy_process_group()


@pytest.mark.long
def test_two_processes_give_the_gradients_of_one(tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    result = str(tmp_path / "grads.pt")
    torch.multiprocessing.spawn(worker, (store, result), nprocs=2)
    torch.manual_seed(0)
    model = small()
    x = torch.randn(2, 3, 6, 6)
    target = torch.randn(2, 3, 12, 12)
    (model(x, (12, 12)) - target).square().mean().backward()
    for got, parameter in zip(
        torch.load(result, weights_only=True), model.parameters(), strict=True
    ):
        torch.testing.assert_close(got, parameter.grad, rtol=1e-3, atol=1e-6)


# -- checkpoints -----------------------------------------------------------------------------------


def lightning(model: DIINN, **declared: Any) -> dict[str, Any]:
    """What the official training code writes."""
    state = {f"net.{k}": v for k, v in model.state_dict().items()}
    state |= {"sub": torch.full((1, 3, 1, 1), 0.5), "div": torch.full((1, 3, 1, 1), 0.5)}
    hyper = {
        "arch": "diinn",
        "mode": model.decoder.mode,
        "init_q": model.decoder.init_q,
        "lr": 1e-4,
    } | declared
    return {
        "state_dict": state,
        "hyper_parameters": hyper,
        "epoch": 49,
        "optimizer_states": [{"lr": 1e-4}],
    }


@pytest.mark.parametrize(
    ("mode", "init_q"), [(1, False), (2, False), (3, False), (3, True), (4, False)]
)
@pytest.mark.parametrize("arch", ["diinn", "imsisr"])
def test_official_lightning_checkpoints_load(
    mode: int, init_q: bool, arch: str, tmp_path: Path
) -> None:
    model = small(mode, init_q)
    torch.save(lightning(model, arch=arch), tmp_path / "last.ckpt")
    loaded = DIINN.from_checkpoint(tmp_path / "last.ckpt")
    assert (loaded.decoder.mode, loaded.decoder.init_q) == (mode, init_q)
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)


def test_an_official_rdn_checkpoint_loads(tmp_path: Path) -> None:
    model = DIINN()
    torch.save(lightning(model), tmp_path / "rdn.ckpt")
    assert type(DIINN.from_checkpoint(tmp_path / "rdn.ckpt").encoder).__name__ == "RDN"


def test_plain_state_dicts_and_safetensors_load_and_train(tmp_path: Path) -> None:
    model = small()
    x = torch.randn(1, 3, 4, 4)
    torch.save(model.state_dict(), tmp_path / "a.pt")
    save_file({k: v.half() for k, v in model.state_dict().items()}, tmp_path / "a.safetensors")
    for name, tolerance in (("a.pt", 0), ("a.safetensors", 5e-3)):
        loaded = DIINN.from_checkpoint(tmp_path / name)
        torch.testing.assert_close(loaded(x, (7, 7)), model(x, (7, 7)), rtol=0, atol=tolerance)
        loaded(x, (7, 7)).sum().backward()
        assert all(p.dtype == torch.float32 and p.grad is not None for p in loaded.parameters())


class Evil:
    def __reduce__(self) -> Any:
        return (print, ("code from a checkpoint ran",))


def broken(tmp_path: Path, change: Any) -> str:
    state = small().state_dict()
    change(state)
    torch.save(state, tmp_path / "x.pt")
    return str(tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("decoder.Q.2.0.bias"), "'decoder.Q.2.0.bias' is missing"),
        (lambda s: s.update({"decoder.extra": torch.zeros(1)}), "'decoder.extra' is not part"),
        (
            lambda s: s.update({"encoder.head.0.bias": torch.zeros(3)}),
            r"'encoder.head.0.bias' is \[3\]",
        ),
        (
            lambda s: s["decoder.K.0.0.weight"].fill_(float("nan")),
            "'decoder.K.0.0.weight' contains NaN",
        ),
        (
            lambda s: s.pop("decoder.K.0.0.weight"),
            "not a DIINN model: it has no 'decoder.K.0.0.weight'",
        ),
    ],
)
def test_checkpoints_that_do_not_fit_are_refused_by_the_first_key(
    change: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=message):
        DIINN.from_checkpoint(broken(tmp_path, change))


def test_checkpoints_that_contradict_their_hyper_parameters_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    for declared, message in (
        ({"mode": 1}, "mode=1"),
        ({"init_q": True}, "init_q=True"),
        ({"arch": "liif"}, "'liif'"),
    ):
        torch.save(lightning(small(), **declared), path)
        with pytest.raises(CheckpointError, match=message):
            DIINN.from_checkpoint(path)


def test_code_in_a_checkpoint_never_runs(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": small().state_dict(), "hook": Evil()}, tmp_path / "evil.ckpt")
    with pytest.raises(CheckpointError, match="not loaded"):
        DIINN.from_checkpoint(tmp_path / "evil.ckpt")
    assert "ran" not in capfd.readouterr().out


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_damaged_files_are_refused_by_name(tmp_path: Path, suffix: str) -> None:
    whole = tmp_path / f"whole{suffix}"
    if suffix == ".pt":
        torch.save(small().state_dict(), whole)
    else:
        save_file(small().state_dict(), whole)
    data = whole.read_bytes()
    for n, part in enumerate((b"", b"not a checkpoint", data[:100], data[: len(data) // 2])):
        path = tmp_path / f"part{n}{suffix}"
        path.write_bytes(part)
        with pytest.raises(CheckpointError, match=path.name):
            DIINN.from_checkpoint(path)
    with pytest.raises(CheckpointError, match="does not exist"):
        DIINN.from_checkpoint(tmp_path / "nowhere.pt")


def test_save_and_from_pretrained_round_trip(tmp_path: Path) -> None:
    model = small(2, True)
    model.save_pretrained(tmp_path / "folder")
    config = json.loads((tmp_path / "folder" / "config.json").read_text())
    assert config == {
        "mode": 2,
        "init_q": True,
        "encoder": "edsr-baseline",
        "trained_scales": [1, 4],
    }
    loaded = DIINN.from_pretrained(tmp_path / "folder")
    assert loaded.decoder.mode == 2 and loaded.decoder.init_q
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)


def test_a_model_folder_that_is_incomplete_is_refused(tmp_path: Path) -> None:
    model = small()
    model.save_pretrained(tmp_path)
    state = model.state_dict()
    del state["decoder.Q.1.0.weight"]
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"'decoder\.Q\.1\.0\.weight' is missing"):
        DIINN.from_pretrained(tmp_path)


def test_every_bundled_model_loads_by_name() -> None:
    for name in bundled_names():
        model = DIINN.from_pretrained(name)
        assert all(p.dtype == torch.float32 and p.isfinite().all() for p in model.parameters())


def test_one_base_for_every_error_and_open_stays_the_built_in() -> None:
    import diinn_fast
    from diinn_fast import errors

    classes = [v for v in vars(errors).values() if isinstance(v, type)]
    assert len(classes) > 6
    assert all(
        issubclass(c, diinn_fast.Error) and getattr(diinn_fast, c.__name__) is c for c in classes
    )
    names: dict[str, object] = {}
    exec("from diinn_fast import *", names)
    assert "open" not in names and "render" in names
