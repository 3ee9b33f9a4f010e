"""spandrel's own loader recognises and runs DIINN.

spandrel needs torchvision, which the pinned environment does not have: installed beside it
(``pip install --no-deps spandrel torchvision``), this runs.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.helpers.known_models import random_model

spandrel = pytest.importorskip("spandrel", reason="spandrel is not installed", exc_type=ImportError)


@pytest.mark.parametrize("prefix", ["", "net."])
def test_the_loader_finds_and_runs_a_model(prefix: str, tmp_path: Path) -> None:
    from diinn_fast.integrations.spandrel import install

    registry = spandrel.ArchRegistry()
    registry.add(*spandrel.MAIN_REGISTRY)
    install(scale=3, registry=registry)
    model = random_model()
    state = {prefix + key: value.contiguous() for key, value in model.state_dict().items()}
    save_file(state, tmp_path / "model.safetensors")
    found = spandrel.ModelLoader(registry=registry).load_from_file(tmp_path / "model.safetensors")
    assert (found.architecture.id, found.scale) == ("DIINN", 3)
    picture = torch.rand(1, 3, 5, 6)
    with torch.no_grad():
        expected = (model(picture * 2 - 1, (15, 18)) * 0.5 + 0.5).clamp(0, 1)
        assert torch.allclose(found(picture), expected, atol=1e-6)
