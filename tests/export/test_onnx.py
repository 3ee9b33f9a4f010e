"""Exported graphs compute what the package does, at sizes that the export never saw."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import PIL.Image
import pytest
import torch
from torch import Tensor, nn

import diinn_fast
from diinn_fast import DIINN
from diinn_fast.cli import main
from diinn_fast.errors import ExportError
from diinn_fast.export import DecodeWindow, FixedScale, Project
from diinn_fast.export.onnx import export_any_scale, export_fixed_scale
from diinn_fast.geometry import local_offset, nearest_index
from tests.helpers.known_models import Channels

CLOSE = 1e-5


def small_model(mode: int) -> DIINN:
    """Random weights whose output uses the whole range, with a small encoder."""
    with torch.random.fork_rng():
        torch.manual_seed(mode)
        return DIINN(mode=mode, encoder=Channels()).eval()


def expected(model: DIINN, picture: Tensor, size: tuple[int, int]) -> np.ndarray:
    with torch.no_grad():
        result: np.ndarray = (model(picture * 2 - 1, size) * 0.5 + 0.5).clamp(0, 1).numpy()
        return result


class Pair:
    """The any-scale pair in onnxruntime, as a caller without PyTorch uses it."""

    def __init__(self, folder: Path) -> None:
        provider = ["CPUExecutionProvider"]
        self._project = onnxruntime.InferenceSession(folder / "project.onnx", providers=provider)
        self._decode = onnxruntime.InferenceSession(folder / "decode.onnx", providers=provider)

    def __call__(
        self,
        picture: np.ndarray,
        size: tuple[int, int],
        window: tuple[int, int, int, int],
        cut: tuple[int, int, int, int] | None = None,
    ) -> np.ndarray:
        content = self._project.run(None, {"picture": picture})[0]
        top, bottom, left, right = cut or (0, content.shape[2], 0, content.shape[3])
        y0, y1, x0, x1 = window
        whole = {
            "content": np.ascontiguousarray(content[:, :, top:bottom, left:right]),
            "rows": np.arange(y0, y1),
            "columns": np.arange(x0, x1),
            "lr": np.array(picture.shape[2:]),
            "origin": np.array([top, left]),
            "size": np.array(size),
        }
        result: np.ndarray = self._decode.run(None, whole)[0]
        return result


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model, exported by the command."""
    folder = tmp_path_factory.mktemp("onnx")
    assert main(["export", str(folder)]) == 0
    return folder


@pytest.mark.long
def test_the_pair_agrees_at_any_scale(folder: Path) -> None:
    pair = Pair(folder)
    for lr, size in (((5, 8), (13, 31)), ((1, 1), (3, 2)), ((9, 4), (9, 4))):
        picture = torch.rand(1, 3, *lr)
        found = pair(picture.numpy(), size, (0, size[0], 0, size[1]))
        upscaled = diinn_fast.upscale(picture, size=size, device="cpu").numpy()
        assert abs(found - upscaled).max() < CLOSE


@pytest.mark.long
def test_windows_of_the_pair_are_parts_of_the_whole_to_the_last_bit(folder: Path) -> None:
    pair = Pair(folder)
    picture = np.random.default_rng(0).random((1, 3, 9, 12), np.float32)
    whole = pair(picture, (40, 50), (0, 40, 0, 50))
    for window in ((0, 7, 0, 9), (20, 40, 33, 50), (11, 12, 5, 6)):
        y0, y1, x0, x1 = window
        np.testing.assert_array_equal(pair(picture, (40, 50), window), whole[:, :, y0:y1, x0:x1])
    # only the content that the window's queries are nearest to
    part = pair(picture, (40, 50), (20, 28, 30, 38), cut=(4, 7, 7, 10))
    np.testing.assert_array_equal(part, whole[:, :, 20:28, 30:38])


def test_positions_are_those_of_the_package() -> None:
    from diinn_fast.export.modules import _position

    for n, total in ((96, (1 << 24) - 3), (30000, 1000003), (4, 166), (7, 5)):
        for start in (0, total // 2, max(0, total - 1000)):
            stop = min(start + 1000, total)
            index, offset = _position(
                torch.arange(start, stop), torch.tensor(n), torch.tensor(total)
            )
            own = nearest_index(start, stop, n, total)
            assert torch.equal(index, own)
            assert torch.equal(offset, local_offset(start, stop, own, n, total, torch.float32))


@pytest.mark.parametrize("mode", [1, 2, 3])
def test_all_exported_modes_agree_before_the_export(mode: int) -> None:
    model = small_model(mode)
    picture = torch.rand(1, 3, 5, 7)
    numbers = [torch.arange(12), torch.arange(17), torch.tensor([5, 7]), torch.tensor([0, 0])]
    with torch.no_grad():
        any_scale = DecodeWindow(model)(Project(model)(picture), *numbers, torch.tensor([12, 17]))
        fixed = FixedScale(model, 3)(picture)
    assert abs(any_scale.numpy() - expected(model, picture, (12, 17))).max() < CLOSE
    assert abs(fixed.numpy() - expected(model, picture, (15, 21))).max() < CLOSE


@pytest.mark.long
def test_the_fixed_scale_agrees_at_other_sizes_and_batches(tmp_path: Path) -> None:
    path = export_fixed_scale(small_model(3), tmp_path, 2)
    graph = onnx.load(path)
    assert {node.op_type for node in graph.graph.node}.isdisjoint({"Gather", "GatherND"})
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for shape in ((1, 3, 6, 4), (3, 3, 1, 9)):
        picture = torch.rand(shape)
        found = session.run(None, {"input": picture.numpy()})[0]
        size = (2 * shape[2], 2 * shape[3])
        assert abs(found - expected(small_model(3), picture, size)).max() < CLOSE


@pytest.mark.long
def test_existing_files_are_kept(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(folder)]) == 2
    assert "--overwrite" in capsys.readouterr().err


@pytest.mark.parametrize("options", [{"mode": 4}, {"mode": 3, "init_q": True}])
def test_what_needs_the_grid_is_refused(options: dict[str, int], tmp_path: Path) -> None:
    model = DIINN(encoder=nn.Identity(), **options)
    with pytest.raises(ExportError, match="modes 1 to 3"):
        export_any_scale(model, tmp_path)
    assert not list(tmp_path.iterdir())


def test_changed_layers_are_refused_not_lost(tmp_path: Path) -> None:
    model = small_model(3)
    model.decoder.K[1][1] = nn.GELU()
    with pytest.raises(ExportError, match=r"K\[1\].*would lose"):
        export_fixed_scale(model, tmp_path, 2)
    assert not list(tmp_path.iterdir())


def test_a_scale_that_is_not_fixed_is_refused() -> None:
    with pytest.raises(ExportError, match="from 1 to 16"):
        FixedScale(small_model(3), 0)


@pytest.mark.long
def test_the_example_without_torch_writes_the_same_picture(folder: Path, tmp_path: Path) -> None:
    samples = np.random.default_rng(3).integers(0, 256, (7, 9, 3), np.uint8)
    PIL.Image.fromarray(samples).save(tmp_path / "in.png")
    path = Path(__file__).resolve().parents[2] / "examples" / "onnx_caller.py"
    command = [sys.executable, path, folder, tmp_path / "in.png", tmp_path / "out.png", "2.6"]
    subprocess.run([str(word) for word in command], check=True)
    found = np.asarray(PIL.Image.open(tmp_path / "out.png")).astype(int)
    want = diinn_fast.upscale(samples, scale=2.6, device="cpu", precision="fp32")
    assert abs(found - want).max() <= 1
