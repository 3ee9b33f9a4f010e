"""Training runs: they learn, stop and go on exactly, survive what happens to processes, and say
what is wrong.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from diinn_fast import DIINN, CheckpointError
from diinn_fast.baselines import LIIF, MetaSR
from diinn_fast.cli import main
from diinn_fast.data import degrade, load_photos
from diinn_fast.errors import DivergedError
from diinn_fast.training import ablation
from diinn_fast.training.module import REWARM, SRModule
from diinn_fast.training.portable import plain_config, read_run, write_run
from diinn_fast.training.run import config_names, config_path
from tests.helpers.threads import one_thread
from tests.helpers.train_small import SMALL, assert_same_state, checkpoint, make_photos, run

ROOT = Path(__file__).parents[2]
MIB = 2**20


@pytest.fixture(scope="module", autouse=True)
def threads() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_photos(tmp_path_factory.mktemp("training") / "photos")


@pytest.fixture(scope="module")
def whole(photos: Path) -> Path:
    """A run of six steps without any incident."""
    out = photos.parent / "whole"
    assert run(photos, out) == (6, "")
    return out


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    original = SRModule.training_step

    def training_step(self: Any, batch: Any, batch_idx: Any) -> Any:
        if self.global_step == step:
            os.kill(os.getpid(), signal.SIGINT)  # the step ends all the same
        return original(self, batch, batch_idx)

    monkeypatch.setattr(SRModule, "training_step", training_step)


@pytest.mark.long
def test_an_interrupted_run_goes_on_to_the_same_bits(
    photos: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3)  # not where a checkpoint is due
        assert run(photos, tmp_path) == (4, "interrupted")
    assert checkpoint(tmp_path / "last.ckpt")["global_step"] == 4
    assert run(photos, tmp_path) == (6, "")
    assert_same_state(checkpoint(whole / "last.ckpt"), checkpoint(tmp_path / "last.ckpt"))
    figures = [
        [{k: v for k, v in row.items() if k != "time"} for row in rows(out)]
        for out in (whole, tmp_path)
    ]
    assert [r for r in figures[0] if "val/psnr" in r] == [r for r in figures[1] if "val/psnr" in r]
    assert [r["train/lr"] for r in figures[0] if "train/lr" in r] == [
        r["train/lr"] for r in figures[1] if "train/lr" in r
    ]


@pytest.mark.long
def test_loader_processes_change_nothing(photos: Path, whole: Path, tmp_path: Path) -> None:
    assert run(
        photos, tmp_path, "--data.workers=1", "--trainer.max_steps=3", "--model.schedule=constant"
    ) == (3, "")
    assert run(photos, tmp_path / "none", "--trainer.max_steps=3", "--model.schedule=constant") == (
        3,
        "",
    )
    assert_same_state(
        checkpoint(tmp_path / "last.ckpt"), checkpoint(tmp_path / "none" / "last.ckpt")
    )


@pytest.mark.long
def test_validation_photos_of_ones_own_are_all_that_is_validated_on(
    photos: Path, tmp_path: Path
) -> None:
    own = make_photos(tmp_path / "own", count=2)
    run(
        photos,
        tmp_path / "run",
        f"--data.val_folder={own}",
        "--trainer.max_steps=3",
        "--model.lr=0",
        "--ema.decay=0",
    )
    model = DIINN.from_checkpoint(tmp_path / "run" / "last.ckpt")
    scores = []
    for hr in load_photos(own).values():
        y, x = ((n - 48) // 2 for n in hr.shape[1:])
        hr = hr[None, :, y : y + 48, x : x + 48].float() / 255
        with torch.no_grad():
            sr = (model((degrade(hr, (24, 24)) - 0.5) / 0.5, (48, 48)) * 0.5 + 0.5).clamp(0, 1)
        scores.append(-10 * math.log10((sr - hr)[..., 8:-8, 8:-8].square().mean().item()))
    assert rows(tmp_path / "run")[-1]["val/psnr_x2"] == pytest.approx(sum(scores) / 2, abs=1e-3)


@pytest.mark.long
def test_a_run_can_start_from_trained_weights(photos: Path, whole: Path, tmp_path: Path) -> None:
    run(
        photos,
        tmp_path,
        "--trainer.max_steps=1",
        "--model.lr=0",
        "--ema.decay=0",
        init=str(whole / "last.ckpt"),
    )
    got = checkpoint(tmp_path / "last.ckpt")["state_dict"]
    want = checkpoint(whole / "last.ckpt")["state_dict"]
    assert all(torch.equal(value, want[name]) for name, value in got.items())
    with pytest.raises(ValueError, match="without --init"):
        run(photos, tmp_path, init=str(whole / "last.ckpt"))
    with pytest.raises(CheckpointError, match="does not fit"):
        run(photos, tmp_path / "other", "--model.mode=1", init=str(whole / "last.ckpt"))


@pytest.mark.long
def test_a_run_can_take_the_encoder_alone(photos: Path, whole: Path, tmp_path: Path) -> None:
    """From a model of another mode; the decoder stays that of the seed."""
    weights = str(whole / "last.ckpt")
    short = ("--trainer.max_steps=1", "--model.lr=0", "--ema.decay=0", "--model.mode=1")
    run(photos, tmp_path / "new", *short)
    run(photos, tmp_path / "taken", *short, init_encoder=weights)
    new = checkpoint(tmp_path / "new" / "last.ckpt")["state_dict"]
    got = checkpoint(tmp_path / "taken" / "last.ckpt")["state_dict"]
    want = checkpoint(whole / "last.ckpt")["state_dict"]
    encoder = {name for name in got if name.startswith("net.encoder.")}
    assert all(torch.equal(got[name], want[name]) for name in encoder)
    assert not all(torch.equal(got[name], new[name]) for name in encoder)
    assert all(torch.equal(got[name], new[name]) for name in got if name not in encoder)
    with pytest.raises(ValueError, match="--init and --init-encoder exclude each other"):
        run(photos, tmp_path / "both", init=weights, init_encoder=weights)


@pytest.mark.long
def test_a_run_without_config_goes_on_with_its_own_and_further(
    photos: Path, whole: Path, tmp_path: Path
) -> None:
    assert run(photos, tmp_path) == (6, "")
    from diinn_fast.training.run import train

    assert train(tmp_path, overrides=["--trainer.max_steps=8"]) == (8, "")
    assert train(tmp_path) == (8, "")  # done already: the same again changes nothing
    assert checkpoint(tmp_path / "last.ckpt")["hyper_parameters"]["encoder"] == "edsr-baseline"


def test_training_lowers_the_loss_and_leaves_a_model_folder(photos: Path, tmp_path: Path) -> None:
    often = ["--trainer.val_check_interval=10", "--checkpoints.every=100"]
    run(photos, tmp_path, "--trainer.max_steps=20", "--model.lr=1e-3", "--ema.decay=0.5", *often)
    losses = [row["train/l1"] for row in rows(tmp_path) if "train/l1" in row]
    assert sum(losses[-4:]) < 0.5 * sum(losses[:4])
    state = checkpoint(tmp_path / "last.ckpt")
    model = DIINN.from_pretrained(tmp_path / "model")
    for name, value in model.state_dict().items():
        assert torch.equal(value, state["state_dict"][f"net.{name}"])
        assert not value.any() or not torch.equal(
            value, state["current_model_state"][f"net.{name}"]
        )
    assert list((tmp_path / "tensorboard").iterdir())
    best = max(row["val/psnr"] for row in rows(tmp_path) if "val/psnr" in row)
    assert checkpoint(tmp_path / "best.ckpt")["callbacks"]["Checkpoints"]["best"] == pytest.approx(
        best, abs=1e-3
    )


@pytest.mark.long
def test_averaged_weights_are_those_of_the_formula(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(
        SRModule,
        "on_train_batch_end",
        lambda self, *_: seen.append(self.net.decoder.last_layer.weight.clone()),
    )
    run(photos, tmp_path, "--ema.decay=0.3")
    average = seen[0]
    for n, value in enumerate(seen[1:], start=1):
        average = average.lerp(value, 1 - min(0.3, (1 + n) / (10 + n)))
    got = checkpoint(tmp_path / "last.ckpt")["state_dict"]["net.decoder.last_layer.weight"]
    torch.testing.assert_close(got, average, rtol=1e-6, atol=1e-8)


@pytest.mark.long
def test_a_loss_that_is_not_finite_stops_with_the_step_and_keeps_the_last_good_state(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = SRModule.loss
    monkeypatch.setattr(
        SRModule,
        "loss",
        lambda self, *a: original(self, *a) * (math.nan if self.global_step == 4 else 1),
    )
    with pytest.raises(DivergedError, match="loss is nan at step 4"):
        run(photos, tmp_path)
    assert checkpoint(tmp_path / "last.ckpt")["global_step"] == 3


@pytest.mark.long
def test_weights_that_are_not_finite_never_replace_good_ones(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = SRModule.on_save_checkpoint

    def on_save_checkpoint(self: Any, content: Any) -> None:
        if self.global_step == 6:
            # As a gradient that overflowed would leave it.
            self.net.decoder.last_layer.bias.data[0] = math.inf
        original(self, content)

    monkeypatch.setattr(SRModule, "on_save_checkpoint", on_save_checkpoint)
    with pytest.raises(DivergedError, match=r"last_layer\.bias is not finite after step 5"):
        run(photos, tmp_path)
    assert checkpoint(tmp_path / "last.ckpt")["global_step"] == 3


KILLED = """
import os, signal, sys, torch
sys.path.insert(0, ".")
from pathlib import Path
from tests.helpers.train_small import run
torch.set_num_threads(1)
save, saves = torch.save, []
def dies(content, file):
    saves.append(content)
    if len(saves) < 3:
        return save(content, file)
    file.write(bytes(1000))
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
torch.save = dies
options = "--checkpoints.every=2", "--trainer.val_check_interval=100"
run(Path(sys.argv[1]), Path(sys.argv[2]), *options)
"""


@pytest.mark.long
def test_kill_9_in_the_middle_of_a_save_loses_the_interval_and_no_more(
    photos: Path, whole: Path, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, photos, tmp_path], cwd=ROOT, capture_output=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert rows(tmp_path)[-1]["step"] == 5  # figures of the step are written after its checkpoint
    assert checkpoint(tmp_path / "last.ckpt")["global_step"] == 4
    assert run(photos, tmp_path) == (6, "")
    assert_same_state(checkpoint(whole / "last.ckpt"), checkpoint(tmp_path / "last.ckpt"))


@pytest.mark.long
def test_time_limits_end_a_run_in_good_order(photos: Path, tmp_path: Path) -> None:
    assert run(photos, tmp_path, "--checkpoints.stop_after=0") == (1, "time is over")
    assert run(photos, tmp_path, "--checkpoints.stop_after=0") == (2, "time is over")
    run(
        photos,
        tmp_path / "often",
        "--checkpoints.minutes=0",
        "--checkpoints.every=100",
        "--trainer.max_steps=2",
    )
    assert checkpoint(tmp_path / "often" / "last.ckpt")["global_step"] == 2


@pytest.mark.long
def test_checkpoints_that_hold_code_are_not_loaded(
    photos: Path, whole: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (print, ("code from a checkpoint ran",))

    torch.save({**checkpoint(whole / "last.ckpt"), "hook": Evil()}, tmp_path / "last.ckpt")
    with pytest.raises(Exception, match=r"last\.ckpt is damaged, or holds more than tensors"):
        run(photos, tmp_path)
    assert "ran" not in capfd.readouterr().out


# -- mixed precision, samplers, schedules ----------------------------------------------------------


@pytest.mark.long
def test_mixed_precision_goes_over_to_float32(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    original = DIINN.sample_pixels

    def sample_pixels(self: Any, *arguments: Any) -> Any:
        rgb = original(self, *arguments)
        seen.append(rgb.dtype)
        return rgb

    monkeypatch.setattr(DIINN, "sample_pixels", sample_pixels)
    run(
        photos,
        tmp_path,
        "--trainer.precision=bf16-mixed",
        "--model.fp32_from=0.5",
        "--data.groups=1",
    )
    assert seen == [torch.bfloat16] * 3 + [torch.float32] * 3


@pytest.mark.long
def test_the_papers_sampler_trains_mode_4_which_cannot_be_sampled(
    photos: Path, tmp_path: Path
) -> None:
    crops = [
        "--data.samples=null",
        "--data.scales=[2, 3]",
        "--trainer.max_steps=1",
        "--trainer.gradient_clip_val=0.5",
    ]
    assert run(photos, tmp_path / "whole crops", "--model.mode=4", *crops) == (1, "")
    with pytest.raises(ValueError, match="samples null"):
        run(photos, tmp_path / "samples", "--model.mode=4")


def module_at(max_steps: int, **arguments: Any) -> SRModule:
    module = SRModule(encoder="edsr-baseline", **arguments)
    module.trainer = type("Trainer", (), {"max_steps": max_steps})()
    return module


def test_schedules() -> None:
    step = module_at(50_000, schedule="step", lr_step=10_000, lr_gamma=0.5)
    assert [step.rate_factor(n) for n in (0, 9_999, 10_000, 49_999)] == [1, 1, 0.5, 0.5**4]
    cosine = module_at(1010, schedule="cosine", warmup=10, lr_final=0.1)
    assert [round(cosine.rate_factor(n), 6) for n in (0, 4, 10, 510, 1010)] == [
        0.1,
        0.5,
        1,
        0.55,
        0.1,
    ]
    cosine.moments_from = 510
    assert cosine.rate_factor(510) == pytest.approx(0.55 / REWARM)


@pytest.mark.long
def test_baselines_train_by_the_same_command(photos: Path, tmp_path: Path) -> None:
    for arch, model in (("liif", LIIF), ("metasr", MetaSR)):
        for name, more in (
            ("sampled", []),
            ("crops", ["--data.samples=null", "--data.scales=[2]"]),
        ):
            out = tmp_path / arch / name
            assert run(photos, out, f"--model.arch={arch}", "--trainer.max_steps=1", *more) == (
                1,
                "",
            )
        state = checkpoint(out / "last.ckpt")["state_dict"]
        for key, value in model.from_checkpoint(out / "last.ckpt").state_dict().items():
            assert torch.equal(value, state[f"net.{key}"])


@pytest.mark.long
def test_the_ablation_trains_all_formulations_and_goes_on(
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = tmp_path / "small.yaml"
    config.write_text("{}")
    crops = [
        "--data.samples=null",
        "--data.scales=[2]",
        "--data.batch=1",
        "--model.encoder=edsr-baseline",
    ]
    command = [
        "--data",
        str(photos),
        "--out",
        str(tmp_path),
        "--config",
        str(config),
        *SMALL,
        *crops,
    ]
    command += ["--trainer.max_steps=2", "--trainer.val_check_interval=500"]
    with monkeypatch.context() as patch:
        interrupt_at(patch, 0)
        assert ablation.main(command) == 130
    assert ablation.main(command) == 0
    table = (tmp_path / "ablation.csv").read_text().splitlines()
    assert table[0] == "mode,init_q,steps,x2" and len(table) == 8
    scores = [float(line.split(",")[-1]) for line in table[1:]]
    assert len(set(scores)) == 7 and all(math.isfinite(s) for s in scores)
    assert (
        "| 4 | no | 2 |" in (tmp_path / "ablation.md").read_text()
        and "| 4 | no | 2 |" in capsys.readouterr().out
    )


# -- run files -------------------------------------------------------------------------------------


@pytest.mark.long
def test_a_run_file_goes_on_elsewhere_and_is_small(
    photos: Path, whole: Path, tmp_path: Path
) -> None:
    file = tmp_path / "run.safetensors"
    assert write_run(whole, file) == file.stat().st_size < 15 * MIB
    state = read_run(file)
    original = checkpoint(whole / "last.ckpt")
    for name, value in original["current_model_state"].items():
        assert torch.equal(state["current_model_state"][name], value)
        torch.testing.assert_close(
            state["state_dict"][name], original["state_dict"][name], rtol=1e-3, atol=1e-6
        )
    assert run(photos, tmp_path / "out", "--trainer.max_steps=9", from_run=file) == (9, "")
    rates = [(row["step"], row["train/lr"]) for row in rows(tmp_path / "out") if "train/lr" in row]
    assert (
        [step for step, _ in rates] == [7, 8, 9]
        and rates[0][1] == 0
        and rates[2][1] < 1e-6 * REWARM
    )
    with pytest.raises(ValueError, match="holds a run already"):
        run(photos, tmp_path / "out", from_run=file)
    write_run(tmp_path / "out", file)  # and from there again
    assert (
        read_run(file)["global_step"] == 9 and read_run(file)["averaging_state"]["n_averaged"] == 9
    )


def test_run_files_that_are_none_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_bytes(b"12345678901234567890")
    for name, message in (
        ("a", "is not a run file"),
        ("b", "cannot be read"),
        ("c", "cannot be read"),
    ):
        with pytest.raises(CheckpointError, match=message):
            read_run(tmp_path / f"{name}.safetensors")
    with pytest.raises(CheckpointError, match="holds no run"):
        write_run(tmp_path, tmp_path / "x.safetensors")


def test_a_run_file_names_no_classes() -> None:
    config = {
        "trainer": {
            "max_steps": 5,
            "callbacks": [{"class_path": "x.Y"}],
            "logger": {"class_path": "x.Z"},
        }
    }
    assert plain_config(config) == {"trainer": {"max_steps": 5}}


# -- the command -----------------------------------------------------------------------------------


def test_configurations_by_name(tmp_path: Path) -> None:
    assert {"paper", "edsr-baseline", "quick"} <= set(config_names())
    with pytest.raises(ValueError, match="edsr-baseline"):
        config_path("papre")


@pytest.mark.parametrize("name", config_names())
def test_configurations_are_accepted_and_print_themselves(
    name: str, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(["train", "--config", name, "--data", str(photos), "--steps", "7", "--print_config"])
        == 0
    )
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["data"]["folder"] == str(photos) and shown["trainer"]["max_steps"] == 7
    assert shown["model"]["encoder"] == {"paper": "rdn"}.get(name, "edsr-baseline")


@pytest.mark.long
def test_the_command_trains_goes_on_and_writes_a_run_file(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    file = tmp_path / "run.safetensors"
    config = tmp_path / "small.yaml"
    config.write_text("{}")
    command = [
        "train",
        "--data",
        str(photos),
        "--out",
        str(out),
        "--minutes",
        "0",
        "--export-run",
        str(file),
    ]
    assert main([*command, "--config", str(config), *SMALL]) == 0
    assert (
        f"stopped at step 1, time is over: diinn-fast train --out {out} resumes"
        in capsys.readouterr().out
    )
    elsewhere = [
        "train",
        "--from-run",
        str(file),
        "--data",
        str(photos),
        "--out",
        str(tmp_path / "elsewhere"),
    ]
    assert main([*elsewhere, "--steps", "2"]) == 0
    assert "trained 2 steps" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "papre", "--steps", "1"], "no configuration 'papre'"),
        (["--model.learning_rate", "1", "--steps", "1"], "learning_rate"),
        (["--model.encoder", "resnet", "--steps", "1"], "unknown encoder 'resnet'"),
        (["--config", "empty"], "give --steps"),
        (["--steps", "1", "--data.batch", "0"], "--data.batch is 0: it must be at least 1"),
        (["--steps", "1", "--data.scales", "[0.5]"], "smaller than 1"),
        (["--steps", "1", "--data.val_size", "20"], "leaves nothing to score at x4"),
        (["--pack", "x.tar", "--pack-size", "big"], "write it as 600MiB"),
    ],
)
def test_wrong_usage_is_one_sentence(
    arguments: list[str],
    message: str,
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").write_text("{}")
    assert main(["train", "--data", str(photos), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("diinn-fast: ") and error.count("\n") == 1
    assert not list(tmp_path.glob("runs/*/last.ckpt"))


def test_bad_photographs_are_named_before_the_first_step(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for n in range(4):
        shutil.copy(photos / "0.png", tmp_path / f"z{n}.png")
    Image.new("RGB", (20, 300)).save(tmp_path / "narrow.png")
    (tmp_path / "broken.png").write_bytes((photos / "0.png").read_bytes()[:2000])
    assert (
        main(
            ["train", "--config", "quick", "--data", str(tmp_path), "--out", str(tmp_path / "run")]
        )
        == 2
    )
    error = capsys.readouterr().err
    assert "narrow.png is 20x300 pixels" in error
    (tmp_path / "narrow.png").unlink()
    assert (
        main(["train", "--config", "quick", "--data", str(tmp_path), "--data.hold_out", "0"]) == 2
    )
    assert "broken.png cannot be decoded" in capsys.readouterr().err


def test_without_lightning_the_error_says_what_to_install(
    photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "lightning" else find(name)
    )
    assert main(["train", "--data", str(photos)]) == 2
    assert "pip install 'diinn_fast[train]'" in capsys.readouterr().err
