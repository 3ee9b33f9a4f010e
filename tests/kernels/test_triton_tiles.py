"""Tiles: tables, tuning, and the tuned file, of which no state may break or change a decode."""

from __future__ import annotations

import importlib.util
import itertools
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)

if importlib.util.find_spec("triton"):
    from diinn_fast.kernels import tiles, tune, tuned

CPU = torch.device("cpu")
FORMS = ("content", "modulation", "direct")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("DIINN_FAST_CACHE", str(tmp_path / "new"))
    tuned.forget()
    yield tmp_path / "new"
    tuned.forget()


def test_candidates_sum_in_the_order_of_the_default() -> None:
    for form, architecture, dtype, width, keep in itertools.product(
        FORMS, (0, 80, 86, 89, 90, 120), (torch.float16, torch.float32), (256, 48), (False, True)
    ):
        chosen = tiles.choose(form, architecture, dtype, width, keep)
        found = tiles.candidates(form, architecture, dtype, width, keep)
        assert found[0] == chosen and len(set(found)) == len(found) > 1
        for tile in found:
            assert width % tile.bn == 0
            # Three products per product, added up per BN.
            assert dtype == torch.float16 or tile.bn == chosen.bn
            # Fewer queries: another instruction.
            assert architecture != 90 or tile.ty * tile.tx >= 64


def test_candidates_of_integers_sum_the_rgb_layer_alike() -> None:
    for form, architecture, width in itertools.product(
        ("content", "modulation"), (0, 80, 86, 89, 90, 120), (256, 96)
    ):
        chosen = tiles.choose(form, architecture, torch.int8, width)
        found = tiles.candidates(form, architecture, torch.int8, width)
        assert found[0] == chosen and len(set(found)) == len(found)
        assert {tile.bn for tile in found} == {chosen.bn} and chosen.bn >= 32
        assert form == "content" or not any(tile.paired for tile in found)


def launched(form: str = "content", dtype: torch.dtype = torch.float16) -> Any:
    return tuned.tile(form, CPU, dtype, 256)


def test_tuned_tiles_are_used_where_they_were_tuned(
    cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    default, other, *_ = tiles.candidates("content", 0, torch.float16, 256)
    unpaired = default._replace(paired=False)  # the direct form has no two products of one q
    assert launched() == default and not cache.exists()  # nothing is tuned, or written, by itself
    tuned.write(CPU, {"content-float16-256": other})
    assert launched() == other
    assert launched(dtype=torch.float32) == default and launched("direct") == unpaired
    other_unpaired = other._replace(paired=False)
    tuned.write(CPU, {"direct-float16-256": other_unpaired})
    assert launched() == other and launched("direct") == other_unpaired
    assert [p.name for p in cache.iterdir()] == ["tiles-interpreter.json"]
    assert not caplog.records


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[]",
        lambda text: text.replace("16,", '"x",', 1),
        lambda text: json.dumps({**json.loads(text), "tiles": {"content-float16-256": [1, 2]}}),
        lambda text: json.dumps(
            {**json.loads(text), "machine": {"device": "interpreter", "triton": "1.0"}}
        ),
    ],
)
def test_a_damaged_or_old_file_is_ignored_with_one_line(
    damage: Any, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    default, other, *_ = tiles.candidates("content", 0, torch.float16, 256)
    file = tuned.write(CPU, {"content-float16-256": other})
    file.write_text(damage(file.read_text()))
    tuned.forget()
    with caplog.at_level(logging.WARNING):
        assert [launched() for _ in range(3)] == [default] * 3
    assert len(caplog.records) == 1 and str(file) in caplog.text and "defaults serve" in caplog.text
    tuned.write(CPU, {"content-float16-256": other})  # tuning repairs it
    assert launched() == other


def test_a_tile_that_sums_differently_is_not_taken_from_a_file() -> None:
    tuned.write(CPU, {"content-float16-256": tiles.INTERPRETER._replace(bn=16)})
    assert launched() == tiles.INTERPRETER


def fake(monkeypatch: pytest.MonkeyPatch, milliseconds: Any, results: Any) -> Any:
    """Kernels whose time and result depend on the tile alone."""

    class Network:
        def __init__(self, problem: Any, source: Any, weights: Any, tile: Any) -> None:
            self.tile = tile

        def forward(self, problem: Any) -> Any:
            if isinstance(results[self.tile], Exception):
                raise results[self.tile]
            return torch.tensor(results[self.tile])

    monkeypatch.setattr(tune, "Network", Network)
    monkeypatch.setattr(
        tune, "seconds", lambda call, device: milliseconds[call.__defaults__[0].tile] / 1e3
    )
    return tune.compare("content", torch.float16, False, CPU, 2, 2, rounds=3)


def test_the_fastest_tile_with_the_same_bits_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    default, other, *_ = tiles.candidates("content", 0, torch.float16, 256)
    wrong = other._replace(ty=4)
    large = other._replace(ty=2)
    monkeypatch.setitem(tiles.CANDIDATES, (0, 2), [wrong, large, other])
    same = {
        default: 1.0,
        other: 1.0,
        wrong: 1.0000001,
        large: RuntimeError("out of resource: shared memory\nmore"),
    }
    result = fake(monkeypatch, {default: 2.0, other: 1.0, wrong: 0.5, large: 0.1}, same)
    assert result["best"] == other and result["default"] == default
    assert result["tried"] == {
        default: 2.0, other: 1.0, wrong: "other results than the default",
        large: "out of resource: shared memory",
    }  # fmt: skip
    # A gain of 1 % is noise: the default stays.
    assert (
        fake(monkeypatch, {default: 1.01, other: 1.0, wrong: 0.5, large: 0.1}, same)["best"]
        == default
    )


def test_tuning_stores_what_it_finds_until_its_time_is_spent(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    default, other, *_ = tiles.candidates("content", 0, torch.float16, 256)
    found = {"best": other, "default": default, "tried": {default: 2.0, other: 1.0}}
    monkeypatch.setattr(tune, "compare", lambda *arguments: found)
    clock = iter([0.0, 1.0, 2.0, 99.0])
    monkeypatch.setattr(tune.time, "perf_counter", lambda: next(clock))
    assert list(tune.tune(CPU, ["content"], budget=60)) == [
        "content-float16-256",
        "content-bfloat16-256",
    ]
    assert (
        f"content-float16-256: {tuple(other)}; {tuple(default)} 2.000 ms" in capsys.readouterr().out
    )
    assert launched() == other and launched(dtype=torch.float32) == default


def test_without_rounds_everything_is_compiled_and_nothing_stored(
    monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    default, other, *_ = tiles.candidates("content", 0, torch.float16, 256)
    monkeypatch.setattr(
        tune, "compare", lambda *arguments: {"best": other, "default": default, "tried": {}}
    )
    tune.tune(CPU, ["content"], rounds=0)
    assert launched() == default and not cache.exists()


def test_tuning_needs_a_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert tune.main([]) == 2
    assert "no CUDA device" in capsys.readouterr().err


@pytest.mark.parametrize(("asked", "index"), [("cuda", 3), ("cuda:1", 1)])
def test_tuning_works_on_the_device_that_was_asked_for(
    asked: str, index: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: list[Any] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(tune, "tune", lambda device, *_, **__: chosen.append(device) or {})
    assert tune.main(["--device", asked, "--rounds", "0"]) == 0
    assert chosen == [torch.device("cuda", index)] * 2
