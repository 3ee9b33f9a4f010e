"""Loading: a model is found in any wrapping, and whatever is wrong is refused by name."""

from __future__ import annotations

import copy
import json
import logging
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import PyTorchModelHubMixin
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from diinn_fast import DIINN, CheckpointError, UpscaleError, hub
from diinn_fast.baselines import LIIF, MetaSR
from diinn_fast.checkpoints import fit
from diinn_fast.encoders import EDSR, channels_of
from diinn_fast.inference import sizes
from diinn_fast.loading import load_model, load_weights
from diinn_fast.model import BUNDLED, DEFAULT_WEIGHTS


@pytest.fixture(scope="module")
def model() -> DIINN:
    return DIINN(mode=3, encoder="edsr-baseline")


@pytest.fixture(scope="module")
def other() -> dict[str, Tensor]:
    """Weights of the same names that are not the model's."""
    return DIINN(mode=3, encoder="edsr-baseline").state_dict()


@pytest.fixture(scope="module")
def mode2() -> DIINN:
    return DIINN(mode=2, encoder="edsr-baseline")


def under(prefix: str, state: dict[str, Any]) -> dict[str, Any]:
    return {f"{prefix}{key}": value for key, value in state.items()}


def saved(content: Any, folder: Path, name: str = "file.pt") -> Path:
    torch.save(content, folder / name)
    return folder / name


def same(a: nn.Module, b: nn.Module) -> bool:
    state = b.state_dict()
    return all(value.equal(state[key]) for key, value in a.state_dict().items())


# -- wrapping --------------------------------------------------------------------------------------

WRAPPINGS: dict[str, Callable[..., Any]] = {
    "bare": lambda s: s,
    "DataParallel": lambda s: under("module.", s),
    "torch.compile": lambda s: under("_orig_mod.", s),
    "compiled parts": lambda s: {k.replace(".", "._orig_mod.", 1): v for k, v in s.items()},
    "a compiled net of a LightningModule": lambda s: {"state_dict": under("net._orig_mod.", s)},
    "another name of the net": lambda s: under("model.", s),
    "BasicSR": lambda s: {"params": s},
    "BasicSR, averaged": lambda s: {"params_ema": s},
    "a generator": lambda s: {"generator": under("module.", s), "step": 3},
    "LIIF's layout": lambda s: {"model": {"name": "diinn", "args": {}, "sd": s}, "epoch": 9},
    "AveragedModel": lambda s: {**under("module.", s), "n_averaged": torch.tensor(4)},
    "an averaged net": lambda s: {"ema.n_averaged": torch.tensor(4), **under("ema.module.", s)},
    "the official buffers": lambda s: {"sub": torch.zeros(1), "div": torch.ones(1), **s},
    "deep": lambda s: {"a": {"b": {"c": {"d": under("x.y.", s)}}}},
    "twice the same": lambda s: {"model": s, "state_dict": dict(s)},
    "numbers beside": lambda s: {**s, "epoch": 7, "loss": 0.5},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_a_model_is_found_in_any_wrapping(wrapping: str, model: DIINN, tmp_path: Path) -> None:
    path = saved(WRAPPINGS[wrapping](model.state_dict()), tmp_path)
    assert same(load_model(path), model)
    assert same(DIINN.from_checkpoint(path), model)


@pytest.mark.parametrize(
    "arrange",
    [
        lambda mine, other: {"params": other, "params_ema": mine},
        lambda mine, other: {"params_ema": mine, "params": other},
        lambda mine, other: under("net.", other) | under("net_ema.", mine),
        lambda mine, other: {"state_dict": under("net.", other), "ema": {"sd": mine}},
        # Lightning's averaging keeps the average in state_dict
        lambda mine, other: {"current_model_state": other, "state_dict": under("net.", mine)},
    ],
)
def test_averaged_weights_are_preferred(
    arrange: Any, model: DIINN, other: dict[str, Tensor], tmp_path: Path
) -> None:
    content = arrange(model.state_dict(), other)
    assert same(load_model(saved(content, tmp_path)), model)


def test_several_models_of_equal_rank_are_refused(
    model: DIINN, other: dict[str, Tensor], tmp_path: Path
) -> None:
    path = saved(under("teacher.", other) | under("student.", model.state_dict()), tmp_path)
    with pytest.raises(CheckpointError, match=r"several models \('teacher' and 'student'\)"):
        load_model(path)


def test_tensors_beside_the_model_are_left_aside_and_named(
    model: DIINN, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = under("net.", model.state_dict()) | {"psnr.total": torch.zeros(1)}
    with caplog.at_level(logging.WARNING, "diinn_fast"):
        assert same(load_model(saved(content, tmp_path)), model)
    assert "left aside 1 tensors that are not of the model: psnr.total" in caplog.text


def test_tensors_within_the_model_that_it_does_not_know_are_refused(
    model: DIINN, tmp_path: Path
) -> None:
    content = under("net.", {**model.state_dict(), "decoder.gate.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"'decoder\.gate\.weight' is not part of the model"):
        load_model(saved(content, tmp_path))


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({"params": {"conv.weight": torch.zeros(1)}}, r"1 tensors in 'params' \(conv\.weight\)"),
        ({"conv.weight": torch.zeros(1)}, r"1 tensors \(conv\.weight\)"),
        ({"epoch": 3, "name": "x"}, "holds epoch, name"),
        ([torch.zeros(1)], "holds nothing by name"),
    ],
)
def test_what_is_there_instead_is_named(content: Any, found: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=found):
        load_model(saved(content, tmp_path))


def test_a_dict_that_holds_itself_ends(tmp_path: Path) -> None:
    content: dict[str, Any] = {"a": torch.zeros(1)}
    content["self"] = content
    with pytest.raises(CheckpointError, match="it has no 'decoder"):
        load_model(saved(content, tmp_path))


def test_an_encoder_of_ones_own_names_the_remedy(tmp_path: Path) -> None:
    own = DIINN(encoder=nn.Conv2d(3, 64, 3, padding=1))
    with pytest.raises(CheckpointError, match=r"DIINN\(encoder=\.\.\.\).*load_state_dict"):
        load_model(saved(own.state_dict(), tmp_path))


# -- architectures and names -----------------------------------------------------------------------


@pytest.mark.parametrize("architecture", [DIINN, LIIF, MetaSR])
def test_every_architecture_is_told_by_its_tensors(architecture: Any, tmp_path: Path) -> None:
    made = architecture(encoder="edsr-baseline")
    path = saved({"state_dict": under("net.", made.state_dict())}, tmp_path)
    loaded = load_model(path)
    assert type(loaded) is architecture and same(loaded, made) and not loaded.training


def test_the_upscalers_say_which_architecture_they_were_given(tmp_path: Path) -> None:
    path = saved(LIIF("edsr-baseline").state_dict(), tmp_path)
    with pytest.raises(CheckpointError, match="is a LIIF model, not a DIINN model"):
        load_weights(path)


def test_the_hub_is_asked_only_by_its_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def from_pretrained(name: str, **options: Any) -> DIINN:
        asked.append((name, options.get("revision")))
        raise OSError("no network\nsecond line")

    monkeypatch.setattr(hub, "reachable", lambda *args, **options: True)
    monkeypatch.setattr(PyTorchModelHubMixin, "from_pretrained", from_pretrained)
    for load in (load_model, DIINN.from_pretrained):
        with pytest.raises(UpscaleError, match=r"hf://someone/model@v1.*no network$"):
            load("hf://someone/model@v1")
    with pytest.raises(UpscaleError, match="bundled"):
        load_model("someone/model")
    with pytest.raises(UpscaleError, match="'someone/model' cannot be fetched"):
        DIINN.from_pretrained("someone/model")
    assert asked == [("someone/model", "v1")] * 2 + [("someone/model", None)]


class ConnectError(Exception):
    """As HTTP libraries call it."""


@pytest.mark.parametrize("options", [{}, {"force_download": True}, {"local_files_only": True}])
def test_without_a_network_the_hub_is_asked_once(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def ask(url: str, **options: Any) -> None:
        asked.append(url)
        raise ConnectError("name or service not known")

    monkeypatch.setattr(hub, "get_hf_file_metadata", ask)
    with pytest.raises(UpscaleError, match=r"cannot be reached: connect.*bundled name \(edsr"):
        DIINN.from_pretrained("someone/model", cache_dir=tmp_path, **options)
    assert len(asked) == (0 if "local_files_only" in options else 1)


def test_the_hubs_answers_are_left_to_its_client(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [None, FileNotFoundError("no such model"), TimeoutError("slow")]

    def ask(url: str, **options: Any) -> None:
        if (answer := answers.pop()) is not None:
            raise answer

    monkeypatch.setattr(hub, "get_hf_file_metadata", ask)
    assert [hub.reachable("someone/model", revision="v1") for _ in range(3)] == [True] * 3


@pytest.mark.parametrize("name", ["bundled", "", "a/b/c", "~/model", "runs/last.ckpt"])
def test_an_unknown_name_is_refused_at_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PyTorchModelHubMixin, "from_pretrained", None)  # would ask the network
    for load in (load_model, load_weights, DIINN.from_pretrained):
        with pytest.raises(UpscaleError, match=r"are unknown: give a checkpoint file.*photo"):
            load(name)


def test_both_ways_take_the_same_names(model: DIINN, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "folder")
    path = saved(model.state_dict(), tmp_path)
    for name in ("photo", str(tmp_path / "folder"), tmp_path / "folder", path, str(path)):
        assert same(DIINN.from_pretrained(name), load_model(name))


# -- damage ----------------------------------------------------------------------------------------


def test_a_flipped_bit_in_any_record_is_refused(model: DIINN, tmp_path: Path) -> None:
    path = saved(model.state_dict(), tmp_path)
    data = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        records = [r for r in archive.infolist() if r.file_size > 100]
    assert len(records) > 20
    for record in records[:: len(records) // 8]:
        damaged = bytearray(data)
        damaged[record.header_offset + 30 + len(record.filename) + 80] ^= 64
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"cannot be read|checksum of its record"):
            load_model(path)


def test_compressed_records_are_refused(model: DIINN, tmp_path: Path) -> None:
    path = saved(model.state_dict(), tmp_path)
    with (
        zipfile.ZipFile(path) as whole,
        zipfile.ZipFile(tmp_path / "small.pt", "w", zipfile.ZIP_DEFLATED) as small,
    ):
        for record in whole.infolist():
            small.writestr(record.filename, whole.read(record))
    with pytest.raises(CheckpointError, match="compressed records"):
        load_model(tmp_path / "small.pt")


def quantised(weight: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: w.int(), "is int32"),
        (lambda w: w.to(torch.complex64), "is complex64"),
        (quantised, "is qint8"),
        (lambda w: w.to_sparse(), "is sparse"),
        (lambda w: w.to("meta"), "meta tensor"),
        (lambda w: w.double() * 1e300, "beyond float32"),
        (lambda w: w * float("inf"), "NaN or infinity"),
    ],
)
def test_what_cannot_be_weights_is_refused_by_name(
    change: Any, said: str, model: DIINN, tmp_path: Path
) -> None:
    state = dict(model.state_dict())
    state["decoder.Q.1.0.weight"] = change(state["decoder.Q.1.0.weight"])
    with pytest.raises(CheckpointError, match=rf"'decoder\.Q\.1\.0\.weight'.*{said}|{said}.*"):
        fit(copy.deepcopy(model), state, "x.pt")
    with pytest.raises(CheckpointError, match=r"x\.pt.*" + said):
        load_model(saved(state, tmp_path, "x.pt"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_point_numbers_become_float32(
    dtype: torch.dtype, model: DIINN, tmp_path: Path
) -> None:
    state = {key: value.to(dtype) for key, value in model.state_dict().items()}
    loaded = load_model(saved(state, tmp_path))
    assert all(p.dtype == torch.float32 for p in loaded.parameters())
    assert loaded.state_dict()["encoder.head.0.weight"].equal(
        state["encoder.head.0.weight"].float()
    )


@pytest.mark.parametrize(
    ("hyper_parameters", "said"),
    [
        ({"mode": "three"}, "mode='three'"),
        ({"init_q": "perhaps"}, "init_q='perhaps'"),
        ({"mode": [3]}, r"mode=\[3\]"),
        ("mode 3", "no table"),
    ],
)
def test_hyper_parameters_that_make_no_sense_are_refused(
    hyper_parameters: Any, said: str, model: DIINN, tmp_path: Path
) -> None:
    content = {"state_dict": model.state_dict(), "hyper_parameters": hyper_parameters}
    with pytest.raises(CheckpointError, match=said):
        load_model(saved(content, tmp_path))


def test_hyper_parameters_may_be_texts(mode2: DIINN, tmp_path: Path) -> None:
    content = {
        "state_dict": mode2.state_dict(),
        "hyper_parameters": {"mode": "2", "init_q": "False", "lr": "1e-4"},
    }
    assert load_weights(saved(content, tmp_path)).decoder.mode == 2


@pytest.mark.parametrize("text", ["[" * 100_000, " " * (2 << 20) + "{}", "\0", '{"mode": [3]}'])
def test_an_unusable_config_is_one_sentence(text: str, model: DIINN, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(text)
    for load in (load_model, DIINN.from_pretrained):
        with pytest.raises(CheckpointError, match=r"unusable config\.json"):
            load(tmp_path)


# -- modes 2 and 3 ---------------------------------------------------------------------------------


def test_a_file_of_ours_says_its_mode(mode2: DIINN, tmp_path: Path) -> None:
    mode2.save_pretrained(tmp_path / "folder")
    file = tmp_path / "folder" / "model.safetensors"
    with safe_open(file, "pt") as opened:
        assert opened.metadata()["mode"] == "2"
    alone = file.rename(tmp_path / "alone.safetensors")
    assert load_weights(alone).decoder.mode == 2


def test_a_config_beside_a_file_says_its_mode(mode2: DIINN, tmp_path: Path) -> None:
    mode2.save_pretrained(tmp_path)
    save_file(mode2.state_dict(), tmp_path / "model.safetensors")
    assert load_weights(tmp_path / "model.safetensors").decoder.mode == 2
    assert load_weights(saved(mode2.state_dict(), tmp_path)).decoder.mode == 2
    (tmp_path / "config.json").write_text('{"mode": "train"}')  # of another program
    assert load_weights(tmp_path / "model.safetensors").decoder.mode == 3


def test_where_nothing_says_the_mode_the_user_can(
    mode2: DIINN, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = saved(mode2.state_dict(), tmp_path)
    with caplog.at_level(logging.WARNING, "diinn_fast"):
        assert load_weights(path, mode=2).decoder.mode == 2
        assert DIINN.from_checkpoint(path, mode=3).decoder.mode == 3
        assert caplog.text == ""
        assert load_weights(path).decoder.mode == 3
    assert caplog.text.count("mode 2 or 3") == 1 and "--mode 2" in caplog.text
    with pytest.raises(CheckpointError, match=r"asked for as mode=4.*mode=3"):
        load_weights(path, mode=4)


def test_a_refused_file_is_not_warned_of(
    mode2: DIINN, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = dict(mode2.state_dict())
    del state["decoder.Q.1.0.bias"]
    with pytest.raises(CheckpointError, match="missing"):
        load_weights(saved(state, tmp_path))
    assert caplog.text == ""


def test_a_mode_that_contradicts_the_file_is_refused(mode2: DIINN, tmp_path: Path) -> None:
    mode2.save_pretrained(tmp_path)
    for path in (tmp_path, tmp_path / "model.safetensors"):
        with pytest.raises(CheckpointError, match="declares mode=2, not 3"):
            load_weights(path, mode=3)


# -- what a loaded model is ------------------------------------------------------------------------


def test_a_model_loaded_in_inference_mode_can_be_trained(model: DIINN, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "folder")
    path = saved(model.state_dict(), tmp_path)
    for load, name in ((DIINN.from_pretrained, tmp_path / "folder"), (load_model, path)):
        with torch.inference_mode():
            loaded = load(name)
        loaded(torch.rand(1, 3, 3, 3), (4, 4)).sum().backward()
        assert all(p.grad is not None for p in loaded.parameters())


def test_the_trained_scales_are_the_models_own(
    model: DIINN,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    wide = DIINN(encoder="edsr-baseline", trained_scales=(1, 8))
    wide.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["trained_scales"] == [1, 8]
    assert load_weights(tmp_path).trained_scales == (1.0, 8.0)
    assert load_weights(DEFAULT_WEIGHTS).trained_scales == (1.0, 4.0)
    sizes.warn_of_scale((10, 10), (60, 60), wide.trained_scales)
    assert caplog.text == ""
    sizes.warn_of_scale((10, 10), (60, 60), model.trained_scales)
    assert "1 to 4" in caplog.text


def test_every_bundled_config_states_all() -> None:
    for file in BUNDLED.glob("*/config.json"):
        assert set(json.loads(file.read_text())) == {
            "mode",
            "init_q",
            "encoder",
            "trained_scales",
        }


def test_a_model_of_another_shape_is_not_saved_as_one_of_a_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"save model\.state_dict\(\) instead"):
        DIINN(encoder=EDSR(channels=64, blocks=2)).save_pretrained(tmp_path)


def test_the_channels_of_an_encoder_are_read_by_either_name() -> None:
    class Theirs(nn.Conv2d):
        out_dim = 24

    own = Theirs(3, 24, 3, padding=1)
    del own.out_channels
    assert channels_of(own) == 24 and DIINN(encoder=own).decoder.in_channels == 24
    assert channels_of(nn.Identity()) == 64
    assert EDSR(16, 1).out_dim == 16
