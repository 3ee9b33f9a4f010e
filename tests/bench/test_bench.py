"""The benchmark harness itself: counts, rounds, statistics, tables, and that all peers compute the
same function.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from bench import memory, peers, photo, precisions, report
from bench.cases import LIIF_PER_HR, Case, from_description
from bench.machine import rates
from bench.table import markdown_table, rows, text_table
from bench.timing import Replay, interleave, rounds_for, summary
from diinn_fast import ImplicitDecoder
from diinn_fast.baselines import LIIF
from diinn_fast.encoders import ENCODERS, make_encoder
from tests.helpers.small_models import small_model

SMALL = Case("decode", (5, 6), 2.5)


def convolution_weights(module: torch.nn.Module) -> int:
    return sum(m.weight.numel() for m in module.modules() if isinstance(m, torch.nn.Conv2d))


def test_flops_are_those_of_the_layers() -> None:
    decoder = ImplicitDecoder(64, mode=3)
    per_query = convolution_weights(decoder)
    content = 576 * 256 * 4
    case = Case("decode", (48, 48), 4)
    assert case.performed_flops("official") == 2 * per_query * 192**2
    assert (
        case.flops("official")
        == case.flops("cpu")
        == 2 * ((per_query - content) * 192**2 + content * 48**2)
    )
    assert case.performed_flops("liif-unfolded") == 2 * LIIF_PER_HR * 192**2
    linear = [p.numel() for p in LIIF(torch.nn.Identity()).imnet.parameters() if p.ndim == 2]
    assert 4 * sum(linear) == LIIF_PER_HR
    projected = 4 * (sum(linear[1:]) + 2 * 256) * 192**2 + 576 * 256 * 48**2
    assert (
        case.flops("liif")
        == case.flops("liif-unfolded")
        == case.performed_flops("liif")
        == 2 * projected
    )
    for name in ENCODERS:
        macs = convolution_weights(make_encoder(name))
        whole = Case("model", (48, 48), 4, encoder=name)
        assert whole.flops("cpu") == case.flops("cpu") + 2 * macs * 48**2
    assert Case("training", (48, 48), 4, batch=4).flops("cpu") == 12 * case.flops("cpu")


def test_cases_survive_the_way_to_another_process() -> None:
    for case in (SMALL, Case("model", (48, 48), 2, encoder="rdn", dtype="float16")):
        assert from_description(json.loads(json.dumps(case.describe()))) == case
    assert SMALL.size == (13, 15) and SMALL.name == "decode-5x6-x2.5"


@pytest.mark.parametrize("case", [SMALL, Case("model", (5, 6), 3, encoder="edsr-baseline")])
def test_all_forms_of_diinn_compute_the_same(case: Case) -> None:
    names = [p for p in peers.names(case, full=False) if p not in ("liif", "bicubic")]
    first, *others = (peers.build(case, peer)() for peer in names)
    assert isinstance(first, torch.Tensor) and first.shape[-2:] == case.size and len(others) >= 1
    for name, other in zip(names[1:], others, strict=True):
        rtol, atol = (2e-2, 1e-3) if name == "int8" else (1e-4, 1e-5)
        torch.testing.assert_close(other, first, rtol=rtol, atol=atol)


def test_both_forms_of_liif_compute_the_same() -> None:
    decoded = [peers.build(SMALL, peer)() for peer in ("liif", "liif-unfolded")]
    torch.testing.assert_close(*decoded, rtol=1e-4, atol=1e-5)
    case = Case("training", (4, 5), 2, batch=2)
    for a, b in zip(
        *(peers.build(case, peer)() for peer in ("liif", "liif-unfolded")), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("encoder", ["", "edsr-baseline"])
def test_all_forms_of_diinn_have_the_same_gradients(encoder: str) -> None:
    case = Case("training", (4, 5), 2, batch=2, encoder=encoder)
    names = [p for p in peers.names(case, full=False) if p != "liif"]
    first, *others = (peers.build(case, peer)() for peer in names)
    for other in others:
        for a, b in zip(other, first, strict=True):  # type: ignore[call-overload]
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


def test_peers_that_do_not_fit_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "free_bytes", lambda device: 1 << 30)
    assert "would need" in (peers.left_out(Case("decode", (180, 320), 4), "official", True) or "")
    assert peers.left_out(Case("decode", (48, 48), 2), "official", True) is None
    assert "--full" in (peers.left_out(Case("decode", (180, 320), 8), "liif", False) or "")
    assert peers.left_out(Case("decode", (180, 320), 8), "liif", True) is None


def test_a_photograph_is_enlarged_by_every_peer_and_alike_by_ours() -> None:
    case = Case("photo", (6, 8), 2, encoder="edsr-baseline")
    made = {}
    for peer in photo.names(case):
        peers.build(case, peer)()
        with PIL.Image.open(photo.scratch() / f"{case.name}-{peer}.png") as picture:
            made[peer] = np.asarray(picture, np.int16)
    assert {samples.shape for samples in made.values()} == {(12, 16, 3)}
    assert np.abs(made["fp32"] - made["official"]).max() <= 1
    assert np.abs(made["int8"] - made["fp32"]).mean() < 0.5
    assert np.abs(made["liif"] - made["fp32"]).mean() > 5


@torch.inference_mode()
def test_precisions_have_features_of_their_own_encoder() -> None:
    """In bfloat16 the residual sums stay in float32: rounded, they would end in 16 zero bits."""
    model = small_model()
    features = precisions.encode_by(
        model, ("fp32", "int8", precisions.HALF), torch.rand(1, 3, 8, 9)
    )
    exact = features["fp32"]
    half = features[precisions.HALF]
    assert features["int8"] is exact and half.dtype == torch.float32
    assert 1e-4 < (half - exact).norm() / exact.norm() < 1e-2
    assert not torch.equal(half, half.bfloat16().float())
    decode = precisions.decoders(model, ("int8", precisions.HALF))
    assert list(decode) == ["fp32", "int8", precisions.HALF]


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_flops_of_the_ordinary_network_are_those_of_its_layers(scale: int) -> None:
    net = photo.ordinary_network(scale)
    macs = 0

    def count(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> None:
        nonlocal macs
        assert isinstance(module, torch.nn.Conv2d)
        macs += module.weight.numel() * output[0, 0].numel()

    for module in net.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(count)
    with torch.inference_mode():
        assert net(torch.rand(1, 3, 4, 5)).shape == (1, 3, 4 * scale, 5 * scale)
    case = Case("photo", (4, 5), scale, encoder="edsr-baseline")
    assert case.flops("convnet") == 2 * macs


def test_stages_add_up_to_the_whole() -> None:
    lines = photo.table(photo.picture_of((6, 8)), 2.0, ["fp32", "int8"], 0.01).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| fp32", "| int8"]
    assert all(len(line.split("|")) == len(photo.STAGES) + 3 for line in lines)


def test_interleaving_is_round_robin_and_even() -> None:
    order: list[str] = []
    times = {"slow": 0.25, "fast": 0.01}

    def clock(call: Any) -> float:
        name = call()
        order.append(name)
        return times[name]

    samples = interleave(
        {"slow": lambda: "slow", "fast": lambda: "fast"}, clock, budget=1.0, most=8
    )
    assert {name: len(v) for name, v in samples.items()} == {"slow": 4, "fast": 8}
    assert order[:2] == ["slow", "fast"]  # warm-up, not counted
    places = [n for n, name in enumerate(order[2:]) if name == "slow"]
    assert all(2 <= b - a <= 4 for a, b in pairwise(places))

    samples = interleave({"long": lambda: "long"}, lambda call: float(len(call())), budget=1.0)
    assert samples == {"long": [4.0, 4.0]}  # the first call counts


def test_rounds_and_summary() -> None:
    assert [rounds_for(t, 1.0, 20) for t in (0.001, 0.1, 1.0, 9.0)] == [20, 10, 3, 2]
    found = summary([4.0, 1.0, 3.0, 2.0, 5.0])
    assert found == {"median": 3.0, "min": 1.0, "q1": 2.0, "q3": 4.0, "max": 5.0, "rounds": 5}
    assert summary([2.0])["q3"] == 2.0


def test_replay_gives_the_samples_back() -> None:
    replay = Replay()
    replay.load([0.5, 0.25])
    readings = [replay() for _ in range(4)]
    assert [readings[1] - readings[0], readings[3] - readings[2]] == [0.5, 0.25]
    assert replay() > 0.0  # then it is an ordinary clock
    assert replay.__name__ == "replay"  # pytest-benchmark prints it


def test_machine_rates_count_their_products() -> None:
    for call, flops in rates("cpu").values():
        call()
        assert flops == 4 * 2 * 2048 * 256 * 512


def test_memory_counts_what_a_call_holds() -> None:
    def call() -> torch.Tensor:
        held = torch.ones(64 << 20, dtype=torch.uint8)
        return held[:1].clone()

    extra, result = memory.resident_peak(call)
    assert isinstance(result, torch.Tensor)
    assert 60 << 20 < extra < 90 << 20
    polled, _ = memory._polled_peak(call)
    assert polled < 90 << 20


def speed_record() -> dict[str, Any]:
    entry = {
        "title": "diinn_fast (backend cpu)",
        **summary([0.5, 0.5]),
        "fraction": {"torch.mm": 0.9, "conv1x1": 0.8},
    }
    official = {
        "title": "official formulation",
        **summary([4.0, 4.0]),
        "fraction": {"torch.mm": 0.1, "conv1x1": 0.1},
    }
    eager = {"title": "plain", **summary([1.0, 1.0]), "fraction": {"torch.mm": 0.4, "conv1x1": 0.3}}
    return {
        "case": Case("decode", (48, 48), 4).describe() | {"lr": [48, 48]},
        "size": [192, 192],
        "name": "decode-48x48-x4",
        "title": "decode: 48x48 to 192x192 (x4)",
        "rates": {"torch.mm": {"flop_per_s": 2e11}, "conv1x1": {"flop_per_s": 4e11}},
        "peers": {"official": official, "eager": eager, "cpu": entry},
        "left_out": {"liif": "0.6 TFLOP: only with --full"},
    }


def memory_record() -> dict[str, Any]:
    record = {
        **speed_record(),
        "peers": {"official": {"title": "official formulation", "extra": 8 << 20, "output": 0}},
    }
    record["peers"]["cpu"] = {"title": "diinn_fast", "extra": 1 << 20, "output": 0}
    del record["rates"]
    return record


def test_tables_show_ratios_and_reasons() -> None:
    header, body = rows(speed_record())
    line = dict(zip(header, body[2], strict=True))
    assert (line["vs official"], line["vs best plain"]) == ("8.00x", "2.00x")
    assert (line["of torch.mm"], line["of best library rate"]) == ("0.90", "0.80")
    assert body[3] == ["liif", "(0.6 TFLOP: only with --full)"]
    assert rows(memory_record())[1][1] == ["diinn_fast", "1.0", "0.0", "0.125"]
    assert "only with --full" in text_table("decode", speed_record())
    assert all(
        text.count("|") == len(header) + 1 for text in markdown_table(header, body).splitlines()
    )


def test_report_is_written_from_results(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    about = {
        "device": "A CPU",
        "commit": "abc",
        "modified": False,
        "date": "2000-01-01T00:00:00",
        "threads": 2,
    }
    about |= {
        "isa": "AVX512",
        "versions": {"torch": "2"},
        "command": "pytest bench",
        "dtype": "float32",
    }
    folder = tmp_path / "results" / "a-cpu"
    folder.mkdir(parents=True)
    # Of another program.
    (folder / "bounded-cost.json").write_text(json.dumps({**about, "runs": []}))
    for suite, record in (
        ("decode", speed_record()),
        ("liif", speed_record()),
        ("memory", memory_record()),
    ):
        (folder / f"{suite}.json").write_text(
            json.dumps({**about, "suite": suite, "records": [record]})
        )
    report.main(tmp_path / "results", tmp_path / "docs")
    text = (tmp_path / "docs" / "performance.md").read_text()
    assert "8.00x" in text and "commit abc" in text and "plots/a-cpu-speed.svg" in text
    assert {p.name for p in (tmp_path / "docs" / "plots").iterdir()} == {
        "a-cpu-speed.svg",
        "a-cpu-memory.svg",
    }
