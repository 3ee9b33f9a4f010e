"""Cards of the bundled models: what the Hub reads in them, and that it is what they say below."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from diinn_fast.model import BUNDLED, DIINN, bundled_names


@pytest.mark.parametrize("name", bundled_names())
def test_the_hub_finds_task_data_and_results(name: str) -> None:
    card = ModelCard.load(BUNDLED / name / "README.md")
    assert card.data.pipeline_tag == "image-to-image"
    assert card.data.library_name == "diinn_fast"
    assert card.data.datasets
    assert card.data.model_name == name
    found: dict[str, list[str]] = {}
    for result in card.data.eval_results:
        found.setdefault(result.dataset_name, []).append(f"{result.metric_value:.2f}")
    for dataset, values in found.items():
        (row,) = re.findall(rf"^\| {dataset} \| this model \|(.*)\|$", card.text, re.MULTILINE)
        assert values == row.replace(" ", "").split("|")


def test_a_saved_model_has_a_card_with_task_and_paper(tmp_path: Path) -> None:
    DIINN(encoder="edsr-baseline").save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.pipeline_tag == "image-to-image"
    assert "arxiv.org/abs/2210.12593" in card.text
