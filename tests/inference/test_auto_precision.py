"""The precision that is taken where none is named: by the output's bits, and by the CPU."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

import diinn_fast
from diinn_fast import DIINN, ImplicitDecoder, use_backend
from diinn_fast.backends import int8
from diinn_fast.errors import UpscaleError
from diinn_fast.formats import read_image
from diinn_fast.inference import Upscaler
from diinn_fast.inference.rendering import loop
from tests.helpers.known_models import random_model, save
from tests.helpers.small_models import picture, small_model

LACKING = "this CPU has no dot product of 8-bit integers"


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU with instructions for int8, whatever this one has."""
    monkeypatch.setattr(int8, "not_native", lambda: None)


@pytest.fixture
def foreign(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU without."""
    monkeypatch.setattr(int8, "not_native", lambda: LACKING)


def samples(dtype: type) -> np.ndarray:
    """12x10, of the same picture in every type."""
    given = picture(12, 10)
    if np.issubdtype(dtype, np.floating):
        return (given / 255).astype(dtype)
    return given.astype(dtype) * (np.iinfo(dtype).max // 255)


def in_file(folder: Path, dtype: type) -> Path:
    """The picture in a file of this depth."""
    path = folder / f"{np.dtype(dtype).name}.npy"
    np.save(path, samples(dtype))
    return path


def same(got: Any, want: Any) -> bool:
    """Whether two results have the same bits."""
    return np.array_equal(np.asarray(got), np.asarray(want))


KINDS: dict[str, tuple[Any, str]] = {
    "uint8": (samples(np.uint8), "int8"),
    "grey uint8": (samples(np.uint8)[..., 0], "int8"),
    "pillow": (PIL.Image.fromarray(samples(np.uint8)), "int8"),
    "uint16": (samples(np.uint16), "fp32"),
    "float32": (samples(np.float32), "fp32"),
    "float16": (samples(np.float16), "fp32"),
    "tensor": (torch.from_numpy(samples(np.float32)).permute(2, 0, 1), "fp32"),
}


@pytest.mark.parametrize(("given", "precision"), KINDS.values(), ids=KINDS)
def test_outputs_of_8_bits_are_made_in_integers(native: None, given: Any, precision: str) -> None:
    """To the bit as where the precision is named; and what is named is taken."""
    model = small_model()
    upscaler = Upscaler(model, device="cpu", precision="auto")
    found = upscaler(given, scale=2)
    assert upscaler.used_precision == precision
    assert upscaler.used_backend == ("int8" if precision == "int8" else "cpu")
    assert same(found, Upscaler(model, device="cpu", precision=precision)(given, scale=2))
    exact = Upscaler(model, device="cpu", precision="fp32")
    exact(given, scale=2)
    assert (exact.used_precision, exact.used_backend) == ("fp32", "cpu")


@pytest.mark.parametrize("bits", [8, 16])
def test_an_image_has_the_bits_of_its_file(native: None, bits: int, tmp_path: Path) -> None:
    given = samples(np.uint8 if bits == 8 else np.uint16)[..., 0]
    PIL.Image.fromarray(given).save(tmp_path / "in.png")
    upscaler = Upscaler(small_model(), device="cpu")
    for image in (tmp_path / "in.png", read_image(tmp_path / "in.png")):
        upscaler(image, scale=2)
        assert upscaler.used_precision == ("int8" if bits == 8 else "fp32")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_files_of_any_size_and_views_alike(native: None, tmp_path: Path, dtype: type) -> None:
    given = in_file(tmp_path, dtype)
    precision = "int8" if dtype == np.uint8 else "fp32"
    upscaler = Upscaler(small_model(), device="cpu")
    whole = upscaler(np.load(given), scale=2)
    upscaler.render(given, tmp_path / "out.npy", scale=2)
    assert upscaler.used_precision == precision
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), whole)
    with upscaler.open(given) as view:
        np.testing.assert_array_equal(view.render(None, (24, 20)), whole)


def test_other_cpus_compute_in_float32(foreign: None) -> None:
    upscaler = Upscaler(small_model(), device="cpu")
    given = samples(np.uint8)
    found = upscaler(given, scale=2)
    assert (upscaler.used_precision, upscaler.used_backend) == ("fp32", "cpu")
    assert same(found, Upscaler(small_model(), device="cpu", precision="fp32")(given, scale=2))


@pytest.mark.parametrize("how", ["argument", "in force"])
def test_a_backend_that_is_asked_for_is_taken(native: None, how: str) -> None:
    """In float32, as before there was int8; `DIINN_FAST_BACKEND` is one in force."""
    with use_backend("eager" if how == "in force" else "auto"):
        backend = "eager" if how == "argument" else None
        upscaler = Upscaler(small_model(), device="cpu", backend=backend)
    upscaler(samples(np.uint8), scale=2)
    assert (upscaler.used_precision, upscaler.used_backend) == ("fp32", "eager")


def _narrow() -> DIINN:
    model = small_model()
    model.decoder = ImplicitDecoder(32, [24] * 3)
    return model.eval()


def _edited() -> DIINN:
    model = small_model()
    model.decoder.Q[1].append(torch.nn.Identity())
    return model


def _init_q() -> DIINN:
    return DIINN(mode=3, init_q=True, encoder="edsr-baseline").eval()


@pytest.mark.parametrize("make", [_narrow, _edited, _init_q])
def test_models_that_integers_do_not_serve_stay_in_float32(native: None, make: Any) -> None:
    upscaler = Upscaler(make(), device="cpu")
    upscaler(samples(np.uint8), scale=2)
    assert upscaler.used_precision == "fp32" and upscaler.used_backend != "int8"


def test_one_engine_has_both_with_the_same_weights(native: None) -> None:
    upscaler = Upscaler(small_model(), device="cpu", self_ensemble=True)
    coarse = upscaler.for_bits(8)
    fine = upscaler.for_bits(16)
    assert (coarse.precision, fine.precision, upscaler.precision) == ("int8", "fp32", "fp32")
    assert coarse.model is fine.model is upscaler.model
    assert coarse.self_ensemble and coarse.for_bits(16) is coarse
    named = Upscaler(small_model(), device="cpu", precision="fp32")
    assert named.for_bits(8) is named
    assert coarse(samples(np.uint8), scale=2).shape == (24, 20, 3)
    fine(samples(np.uint8), scale=2)
    assert (coarse.used_precision, fine.used_precision) == ("int8", "fp32")
    upscaler(samples(np.uint8), scale=2)
    assert upscaler.used_precision == "int8"
    upscaler(samples(np.uint8), size=(5, 5))
    assert (upscaler.used_precision, upscaler.used_backend) == ("", "bicubic")


def test_what_is_changed_afterwards_counts(native: None) -> None:
    upscaler = Upscaler(small_model(), device="cpu")
    picture = samples(np.uint8)
    before = upscaler(picture, scale=2)
    upscaler.self_ensemble = True
    assert not np.array_equal(upscaler(picture, scale=2), before)
    upscaler.self_ensemble = False
    upscaler.model = small_model(mode=2)
    assert not np.array_equal(upscaler(picture, scale=2), before)


def test_a_backend_of_integers_is_named_as_their_precision(native: None) -> None:
    upscaler = Upscaler(small_model(), device="cpu", backend="int8")
    upscaler(samples(np.uint16), scale=2)
    assert (upscaler.used_precision, upscaler.used_backend) == ("int8", "int8")


def test_the_network_itself_stays_in_float32(native: None) -> None:
    model = small_model()
    x = torch.rand(1, 3, 12, 10)
    with torch.no_grad():
        found = model(x, (24, 20))
        with use_backend("cpu"):
            assert torch.equal(found, model(x, (24, 20)))


def test_a_job_is_not_continued_in_another_precision(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Begun by a CPU with instructions for int8, continued by one without: refused, until the
    precision is named.
    """
    model = small_model()
    out = tmp_path / "out.png"

    def stopped(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(int8, "not_native", lambda: None)
        patch.setattr(loop, "render_block", stopped)
        with pytest.raises(KeyboardInterrupt):
            Upscaler(model, device="cpu").render(samples(np.uint8), out, scale=2)
    monkeypatch.setattr(int8, "not_native", lambda: LACKING)
    with pytest.raises(UpscaleError, match=r"another job.*--precision fp32 or int8 continues it"):
        Upscaler(model, device="cpu").render(samples(np.uint8), out, scale=2, resume=True)
    named = Upscaler(model, device="cpu", precision="int8")
    named.render(samples(np.uint8), out, scale=2, resume=True)
    with PIL.Image.open(out) as made:
        np.testing.assert_array_equal(np.asarray(made), named(samples(np.uint8), scale=2))


def test_a_view_computes_elsewhere_as_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is sent names the precision, so that machines of a cluster do not mix."""
    weights = save(random_model(), tmp_path / "weights")
    monkeypatch.setattr(int8, "not_native", lambda: None)
    shown = diinn_fast.open(samples(np.uint8), weights, device="cpu")
    exact = diinn_fast.open(samples(np.uint8), weights, device="cpu", precision="fp32")
    assert shown.identity != exact.identity
    expected = shown.render(None, (24, 20))
    sent = pickle.dumps(shown)
    monkeypatch.setattr(int8, "not_native", lambda: LACKING)
    np.testing.assert_array_equal(pickle.loads(sent).render(None, (24, 20)), expected)


def test_what_is_taken_and_why_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "diinn_fast")
    monkeypatch.setattr(int8, "not_native", lambda: None)
    Upscaler(small_model(), device="cpu")(samples(np.uint8), scale=2)
    assert "in int8 for outputs of 8 bits per channel" in caplog.text
    assert "10x12 to 20x24 in int8 by backend int8" in caplog.text
    monkeypatch.setattr(int8, "not_native", lambda: LACKING)
    Upscaler(small_model(), device="cpu")
    assert f"in fp32 (not int8: {LACKING})" in caplog.text


def test_native_are_sets_with_a_dot_product_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8, "unavailable", lambda: None)
    for name in ("amx", "avx512_vnni", "avx_vnni", "dotprod", "avx2", "portable"):
        monkeypatch.setattr(int8, "instruction_set", lambda name=name: name)
        reason = int8.not_native()
        assert (reason is None) == (name not in ("avx2", "portable"))
        assert reason is None or name in reason
    monkeypatch.setattr(int8, "unavailable", lambda: "no kernels")
    assert int8.not_native() == "no kernels"


def test_the_instruction_set_may_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIINN_FAST_CPU_ISA", "portable")
    upscaler = Upscaler(small_model(), device="cpu")
    upscaler(samples(np.uint8), scale=2)
    assert upscaler.used_precision == "fp32"
