"""``diinn-fast eval``: rows, resuming, tables, plots, crop sheets, refusals."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from diinn_fast.baselines import LIIF, MetaSR
from diinn_fast.cli import main
from diinn_fast.evaluation import candidates, load_candidate, report, runtime, sheets, tables
from diinn_fast.evaluation.results import Mean, Results, Row, means
from diinn_fast.evaluation.run import make_pair
from diinn_fast.metrics import METRICS, PROTOCOLS, Metric, psnr
from tests.helpers.known_models import nearest_model, random_model, save

PHOTO = Path(__file__).parents[2] / "examples" / "coffee.png"
CPU = torch.device("cpu")


@pytest.fixture
def sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Current folder with SetA (a photograph and a grey image) and SetB (a photograph)."""
    monkeypatch.chdir(tmp_path)
    photo = Image.open(PHOTO).convert("RGB")
    for name in ("SetA", "SetB"):
        (tmp_path / name).mkdir()
    photo.crop((40, 60, 104, 109)).save("SetA/cup.png")
    photo.crop((10, 10, 57, 62)).convert("L").save("SetA/grey.png")
    photo.crop((80, 100, 130, 160)).save("SetB/table.png")
    return tmp_path


@pytest.fixture(scope="session")
def nearest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(nearest_model(), tmp_path_factory.mktemp("models") / "nearest")


def rows(out: str = "out") -> list[dict[str, str]]:
    """The file's lines as one dict per image, scale and model; metrics that are not there are
    empty.
    """
    found: dict[tuple[str, ...], dict[str, str]] = {}
    with Path(out, "images.csv").open() as file:
        for line in csv.DictReader(file):
            metric, value = line.pop("metric"), line.pop("value")
            empty = line | dict.fromkeys((*METRICS, "seconds"), "")
            found.setdefault(tuple(line.values()), empty)[metric] = value
    return list(found.values())


def evaluate(*arguments: object) -> int:
    return main(["eval", "--out", "out", "--device", "cpu", "-q", *map(str, arguments)])


@pytest.fixture
def upscaled(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """HR sizes that bicubic is asked for from now on."""
    calls: list[tuple[int, int]] = []

    def count(lr: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        calls.append(size)
        return F.interpolate(lr, size, mode="bicubic", antialias=True)

    monkeypatch.setattr(candidates, "bicubic", count)
    return calls


# -- what is measured ------------------------------------------------------------------------------


def test_every_image_at_every_scale_by_every_model(sets: Path, nearest: Path) -> None:
    assert (
        evaluate("--data", "SetA", "SetB", "--models", "bicubic", nearest, "--scales", 2, 3.5) == 0
    )
    found = rows()
    assert {(r["set"], r["image"], r["scale"], r["model"]) for r in found} == {
        (name, image, scale, model)
        for name, image in (("SetA", "cup.png"), ("SetA", "grey.png"), ("SetB", "table.png"))
        for scale in ("2", "3.5")
        for model in ("bicubic", "nearest")
    }
    for row in found:
        pixels = np.array(Image.open(Path(row["set"], row["image"])).convert("RGB"))
        scale = float(row["scale"])
        lr, hr = make_pair(
            torch.from_numpy(pixels).permute(2, 0, 1), scale, PROTOCOLS["liif-benchmark"]
        )
        size = hr.shape[-2:]
        if row["model"] == "nearest":
            sr = F.interpolate(lr, size, mode="nearest-exact")
        else:
            sr = F.interpolate(lr, size, mode="bicubic", antialias=True)
        weights = torch.tensor([65.738, 129.057, 25.064]).view(3, 1, 1) / 256
        inside = slice(int(scale), -int(scale))
        a = (sr.clamp(0, 1) * weights).sum(1)[..., inside, inside]
        b = (hr * weights).sum(1)[..., inside, inside]
        assert float(row["psnr"]) == pytest.approx(psnr(a, b), abs=1e-3)
        assert row["ssim"] == row["lr_psnr"] == "" and float(row["seconds"]) > 0


def test_the_protocol_decides_the_metrics(sets: Path) -> None:
    assert (
        evaluate("--data", "SetA", "--models", "bicubic", "--table", "beyond", "--sheets", 0) == 0
    )
    found = rows()
    assert {r["protocol"] for r in found} == {"diinn-test"} and {r["scale"] for r in found} == {
        "6",
        "8",
        "10",
        "15",
    }
    assert all(r["psnr"] and r["ssim"] and r["lr_psnr"] for r in found)
    assert (
        evaluate("--data", "SetA", "--models", "bicubic", "--metrics", "ssim", "--scales", 2) == 0
    )
    assert [r["psnr"] for r in rows() if r["scale"] == "2"] == ["", ""]


def test_div2k_has_its_own_protocol(sets: Path) -> None:
    Path("SetB").rename("DIV2K")
    assert evaluate("--data", "SetA", "DIV2K", "--models", "bicubic", "--scales", 2) == 0
    assert {(r["set"], r["protocol"]) for r in rows()} == {
        ("SetA", "liif-benchmark"),
        ("DIV2K", "liif-div2k"),
    }


@pytest.mark.long
def test_images_smaller_than_the_scale_do_not_stop_it(sets: Path, nearest: Path) -> None:
    Image.new("RGB", (5, 3), "red").save("SetB/tiny.png")
    for table in ("beyond", "in-scale"):
        assert evaluate("--data", "SetB", "--models", "bicubic", nearest, "--table", table) == 0
    tiny = {(r["protocol"], r["scale"]): r["psnr"] for r in rows() if r["image"] == "tiny.png"}
    assert tiny["liif-benchmark", "4"] == "nan" and tiny["diinn-test", "15"] not in ("", "nan")
    summary = Path("out/summary.md").read_text()
    assert "nan" not in summary  # undefined scores do not count in means


def test_a_network_that_gives_nan_stops_the_evaluation(
    sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(candidates, "bicubic", lambda lr, size: torch.full((1, 3, *size), math.nan))
    assert evaluate("--data", "SetB", "--models", "bicubic", "--scales", 2) == 1
    error = capsys.readouterr().err
    assert "bicubic gave NaN" in error and "table.png" in error and rows() == []


# -- going on --------------------------------------------------------------------------------------


def test_an_interrupted_run_goes_on(
    sets: Path, upscaled: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(lr: Any, size: Any) -> Any:
        if len(upscaled) == 3:
            raise KeyboardInterrupt
        upscaled.append(size)
        return F.interpolate(lr, size, mode="bicubic", antialias=True)

    arguments = ("--data", "SetA", "SetB", "--models", "bicubic", "--scales", 2, 4, "--sheets", 0)
    whole = candidates.bicubic
    monkeypatch.setattr(candidates, "bicubic", interrupt)
    assert evaluate(*arguments) == 130
    assert len(rows()) == 3 and "SetA (2)" in Path("out/summary.md").read_text()
    monkeypatch.setattr(candidates, "bicubic", whole)
    with Path("out/images.csv").open("a") as file:
        file.write("liif-benchmark,SetB,table.p")  # a write that was cut off
    upscaled.clear()
    assert evaluate(*arguments) == 0
    assert len(upscaled) == 3 and len(rows()) == 6
    upscaled.clear()
    assert evaluate(*arguments) == 0
    assert upscaled == []


def test_models_sets_and_metrics_are_added_to_what_is_there(
    sets: Path, nearest: Path, upscaled: list[tuple[int, int]]
) -> None:
    evaluate("--data", "SetA", "--models", "bicubic", "--scales", 2, "--sheets", 0)
    upscaled.clear()
    evaluate("--data", "SetA", "SetB", "--models", "bicubic", nearest, "--scales", 2, "--sheets", 0)
    assert len(upscaled) == 1 and len(rows()) == 6
    evaluate(
        "--data",
        "SetB",
        "--models",
        "bicubic",
        "--metrics",
        "psnr",
        "ssim",
        "--scales",
        2,
        "--sheets",
        0,
    )
    assert len(upscaled) == 2
    table = Path("out/summary.md").read_text()
    assert all(text in table for text in ("SetA (2)", "SetB (1)", "bicubic", "nearest", "### SSIM"))


def test_other_weights_of_the_same_name_are_measured_again(sets: Path, tmp_path: Path) -> None:
    arguments = ("--data", "SetB", "--models", "model=m", "--scales", 2, "--sheets", 0)
    save(nearest_model(), tmp_path / "m")
    evaluate(*arguments)
    save(random_model(), tmp_path / "m")
    evaluate(*arguments)
    first, second = rows()
    assert first["weights"] != second["weights"]
    summary = Path("out/summary.md").read_text()
    assert (
        f"{float(second['psnr']):.2f}" in summary and f"{float(first['psnr']):.2f}" not in summary
    )
    save(nearest_model(), tmp_path / "m")
    evaluate(*arguments)
    assert len(rows()) == 2 and f"{float(first['psnr']):.2f}" in Path("out/summary.md").read_text()


def test_a_file_with_a_column_per_metric_is_read_and_written_anew(tmp_path: Path) -> None:
    """As version 0.1 wrote it."""
    (tmp_path / "images.csv").write_text(
        "protocol,set,image,scale,model,weights,psnr,ssim,lr_psnr,seconds\n"
        "liif-benchmark,Set5,a.png,2,bicubic,-,33.1234,,,0.01000\n"
        "liif-benchmark,Set5,b.png,2,bicubic,-,nan,,,0.01000\n"
        "liif-benchmark,Set5,a.png,2,bicubic,-,34.0000,0.910000,,0.02000\n"
    )
    for _ in range(2):  # the second time in the present form
        first, second = Results(tmp_path).rows.values()
        assert first.image == "b.png" and math.isnan(first.scores["psnr"])
        assert second.scores == {"psnr": 34.0, "ssim": 0.91, "seconds": 0.02}
        assert not second.has(["lr_psnr"])
    assert (
        (tmp_path / "images.csv")
        .read_text()
        .startswith("protocol,set,image,scale,model,weights,metric,value\n")
    )


def test_a_new_metric_is_one_entry(sets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is measured, stored, tabled, and added to an old file."""
    evaluate("--data", "SetB", "--models", "bicubic", "--scales", 2, "--sheets", 0)
    blunder = Metric("blunder", "Largest error", 3, lambda p: float((p.sr - p.hr).abs().max()))
    monkeypatch.setitem(METRICS, "blunder", blunder)
    options = ("--metrics", "psnr", "blunder", "--scales", 2, "--sheets", 0)
    assert evaluate("--data", "SetB", "--models", "bicubic", *options) == 0
    (found,) = rows()
    assert 0 < float(found["blunder"]) < 1 and float(found["psnr"]) > 20
    assert "### Largest error" in Path("out/summary.md").read_text()


def test_a_file_that_is_something_else_is_not_added_to(tmp_path: Path) -> None:
    (tmp_path / "images.csv").write_text("name,value\n")
    with pytest.raises(ValueError, match="choose another --out"):
        Results(tmp_path)


# -- models ----------------------------------------------------------------------------------------


def test_checkpoints_of_every_architecture_are_recognised(tmp_path: Path) -> None:
    torch.save({"model": {"sd": LIIF("edsr-baseline").state_dict()}}, tmp_path / "liif.pth")
    torch.save({"model": {"sd": MetaSR("edsr-baseline").state_dict()}}, tmp_path / "last.pt")
    torch.save(
        {f"net.{k}": v for k, v in random_model().state_dict().items()}, tmp_path / "ours.ckpt"
    )
    for name, label, kind in (
        ("liif.pth", "liif", "LIIF"),
        ("last.pt", tmp_path.name, "MetaSR"),
        ("ours.ckpt", "ours", "DIINN mode 3"),
    ):
        candidate = load_candidate(str(tmp_path / name), CPU)
        assert candidate.model is not None
        assert (candidate.label, candidates.describe(candidate.model)) == (label, kind)
    assert load_candidate("bundled", CPU).label == "edsr-baseline-mode3"
    assert load_candidate("a=bundled", CPU).label == "a"
    assert load_candidate("cubic=bicubic", CPU).label == "cubic"


def test_fingerprints_depend_on_every_weight() -> None:
    a = nearest_model()
    b = nearest_model()
    assert candidates.fingerprint(a) == candidates.fingerprint(b)
    with torch.no_grad():
        b.decoder.last_layer.bias[2] += 1e-7
    assert candidates.fingerprint(a) != candidates.fingerprint(b)


# -- tables ----------------------------------------------------------------------------------------


def row(model: str, psnr: float | None, scale: str = "2", image: str = "a") -> Row:
    return Row(
        "liif-benchmark", "Set5", image, scale, model, "-", {} if psnr is None else {"psnr": psnr}
    )


def test_tables_have_means_and_the_best_in_bold() -> None:
    found = [row("a", 30.0), row("b", 31.0), row("a", 32.0, image="b"), row("b", 32.0, image="b")]
    found += [row("b", 20.004, "10"), row("a", 20.001, "10")]
    text = report.markdown(found)
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if "Set5" in line
    ]
    assert lines == [
        ["Set5 (2)", "x2", "31.00", "**31.50**"],
        ["Set5 (1)", "x10", "**20.00**", "**20.00**"],
    ]
    assert PROTOCOLS["liif-benchmark"].describe() in text and "SSIM" not in text


def test_means_over_fewer_images_are_marked() -> None:
    text = report.markdown([row("a", 30.0), row("a", 31.0, image="b"), row("b", 33.0)])
    assert "**33.00** (1 images)" in text


def test_undefined_scores_do_not_count_and_missing_ones_leave_no_mean() -> None:
    assert [m.scores for m in means([row("a", 30.0), row("a", math.nan, image="b")])] == [
        {"psnr": 30.0}
    ]
    assert [m.scores for m in means([row("a", 30.0), row("a", None, image="b")])] == [{}]
    (undefined,) = means([row("a", math.nan)])
    assert isinstance(undefined, Mean) and math.isnan(undefined.scores["psnr"])
    assert report.cells([math.nan, None, 1.0], "psnr") == ["-", "-", "1.00"]


def test_ablation_compares_the_runs_of_a_folder(
    sets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for mode, name in ((1, "mode1"), (3, "mode3")):
        Path("runs", name).mkdir(parents=True)
        state = {f"net.{k}": v for k, v in random_model(mode).state_dict().items()}
        torch.save(
            {"state_dict": state, "hyper_parameters": {"mode": mode}}, f"runs/{name}/last.ckpt"
        )
    Path("runs/notes").mkdir()
    assert (
        evaluate(
            "--table",
            "ablation",
            "--runs",
            "runs",
            "--data",
            "SetB",
            "--scales",
            2,
            3,
            "--sheets",
            0,
        )
        == 0
    )
    table = Path("out/summary.md").read_text().partition("## Ablation")[2]
    header = next(line for line in table.splitlines() if line.startswith("| run"))
    assert [c.strip() for c in header.strip("|").split("|")][3:] == ["SetB x2", "SetB x3"]
    assert "DIINN mode 1" in table and "2,207,043" in table
    assert evaluate("--table", "ablation", "--data", "SetB") == 2
    assert evaluate("--table", "ablation", "--data", "SetB", "--runs", "SetA") == 2
    assert "expected folders with last.ckpt" in capsys.readouterr().err


def test_runtime_table(sets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "LR_SIZE", (4, 4))
    monkeypatch.setattr(runtime, "BUDGET", 0.0)
    arguments = ("--table", "runtime", "--encoder", "edsr-baseline", "--scales", 2)
    assert evaluate(*arguments) == 0
    with Path("out/runtime-edsr-baseline.csv").open() as file:
        found = list(csv.DictReader(file))
    names = [
        "bicubic",
        "edsr-baseline alone",
        "Meta-SR",
        "LIIF",
        "DIINN, official formulation",
        "DIINN, diinn_fast",
    ]
    assert [r["method"] for r in found[:: runtime.LEAST]] == names
    text = Path("out/runtime-edsr-baseline.md").read_text()
    assert (
        all(name in text for name in names) and "| x2" in text.replace(" |", "|").replace("  ", " ")
    ) or "x2" in text


@torch.no_grad()
def test_runtime_s_official_formulation_is_the_same_function() -> None:
    calls = runtime.methods("edsr-baseline", CPU)
    x = torch.rand(1, 3, 4, 5)
    ours = calls[f"DIINN, {'diinn_fast'}"](x, (9, 11))
    official = calls[f"DIINN, {'official formulation'}"](x, (9, 11))
    torch.testing.assert_close(ours, official, rtol=1e-4, atol=1e-5)


# -- plots and sheets ------------------------------------------------------------------------------


def test_plots_and_sheets_are_written(sets: Path, nearest: Path) -> None:
    assert evaluate("--data", "SetA", "--models", "bicubic", nearest, "--scales", 2, 3) == 0
    written = sorted(p.name for p in Path("out").iterdir())
    assert written[-3:] == ["psnr-liif-benchmark.png", "summary.csv", "summary.md"]
    (sheet,) = (p for p in written if p.startswith("SetA-"))
    assert sheet.endswith("-x3.png")
    assert Image.open(f"out/{sheet}").width > 3 * sheets.PANEL
    with Path("out/summary.csv").open() as file:
        summary = list(csv.DictReader(file))
    assert [(r["scale"], r["model"], r["images"], r["metric"]) for r in summary] == [
        ("2", "bicubic", "2", "psnr"),
        ("2", "nearest", "2", "psnr"),
        ("3", "bicubic", "2", "psnr"),
        ("3", "nearest", "2", "psnr"),
    ]


def test_without_matplotlib_there_are_tables_all_the_same(
    sets: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    assert evaluate("--data", "SetB", "--models", "bicubic", "--scales", 2, 3) == 0
    assert "pip install matplotlib" in capsys.readouterr().err
    assert Path("out/summary.md").exists() and not list(Path("out").glob("psnr*"))


def test_the_crop_is_where_the_outputs_differ() -> None:
    hr = torch.zeros(1, 3, 60, 80)
    a = hr.clone()
    b = hr.clone()
    b[..., 30:35, 50:55] = 1
    b[..., :2, :] = 5  # what the protocol leaves out does not count
    y, x = sheets.interesting_place([a, b], hr, 12, 2)
    assert y <= 30 and y + 12 >= 35 and x <= 50 and x + 12 >= 55
    hr[..., 40:45, 9:12] = 1
    y, x = sheets.interesting_place([a], hr, 12, 2)  # one model: where it differs from HR
    assert y <= 40 and y + 12 >= 45 and x <= 9 and x + 12 >= 12
    y, x = sheets.interesting_place([a], hr, 60, 4)
    assert y == 0
    assert abs(x) <= 80


def test_a_sheet_shows_the_crops_as_they_are() -> None:
    hr = torch.rand(3, 50, 64)
    crop = torch.rand(3, 24, 24)
    canvas = sheets.sheet(
        ("title", "note"), [("a", "", crop), ("b", "1 dB *", crop)], hr, (5, 6, 24)
    )
    pixels = np.array(canvas)
    panel = (
        (crop * 255)
        .round()
        .byte()
        .permute(1, 2, 0)
        .repeat_interleave(12, 0)
        .repeat_interleave(12, 1)
        .numpy()
    )
    top = sheets.MARGIN
    left = next(
        x for x in range(pixels.shape[1]) if (pixels[top : top + 288, x] == panel[:, 0]).all()
    )
    assert (pixels[top : top + 288, left : left + 288] == panel).all()


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["--data"]),
        (["--data", "missing"], ["missing"]),
        (["--data", "empty"], ["no images", "empty"]),
        (["--data", "SetA", "sub/SetA"], ["two folders", "SetA"]),
        (["--data", "SetA", "--models", "no-such"], ["no-such", "bundled"]),
        (["--data", "SetA", "--models", "bicubic", "bicubic"], ["bicubic", "LABEL=MODEL"]),
        (["--data", "SetA", "--scales", "0.5"], ["0.5", "reduced"]),
        (["--data", "SetA", "--scales", "nan"], ["scale"]),
        (["--data", "SetA", "--protocol", "mine"], ["mine", "basicsr"]),
        (["--data", "SetA", "--table", "beyond", "--device", "tpu"], ["tpu"]),
        (["--table", "runtime", "--encoder", "vgg"], ["vgg", "rdn"]),
    ],
    ids=lambda value: " ".join(value).replace("/", "-"),
)
def test_refusals(
    sets: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: list[str]
) -> None:
    Path("empty").mkdir()
    Path("sub/SetA").mkdir(parents=True)
    Path("SetB/table.png").rename("sub/SetA/table.png")
    assert evaluate(*arguments) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and all(word in error for word in words)
    assert not Path("out").exists()


def test_ssim_without_torchmetrics_is_refused_before_the_work(
    sets: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    upscaled: list[tuple[int, int]],
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torchmetrics", None)
    assert evaluate("--data", "SetA", "--models", "bicubic", "--protocol", "diinn-test") == 2
    assert "pip install torchmetrics" in capsys.readouterr().err and upscaled == []


def test_presets_are_the_paper_s() -> None:
    assert {name: table.scales for name, table in tables.TABLES.items()} == {
        "in-scale": (2, 3, 4),
        "between": (2.5, 3.5),
        "beyond": (6, 8, 10, 15),
        "runtime": (2, 3, 4, 6, 8),
        "ablation": (2, 3, 4),
    }
