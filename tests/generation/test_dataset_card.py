"""The card of a generated set, before and after `evaluate` fills in the scores."""

from __future__ import annotations

from pathsynth.core.metric_files import read_details
from pathsynth.core.params import load_params
from pathsynth.data import labels
from pathsynth.data.provenance import escape_markdown
from pathsynth.data.settings import AnyDataset
from pathsynth.diffusion.base import base_name
from pathsynth.diffusion.settings import BaseModelSettings
from pathsynth.generation.dataset_card import Recipe, dataset_card
from pathsynth.generation.settings import GenerationSettings


def test_card_states_contents_provenance_and_scores(finished):
    unscored = (finished / "data" / "generated" / "README.md").read_text()
    scored = (finished / "reports" / "dataset_card.md").read_text()
    for card in (unscored, scored):
        assert "Synthetic, not for diagnosis" in card and "licence" in card and "seed 7" in card
        assert all(f"| {label} | an area with {label} |" in card for label in labels.PATHMNIST)
        assert str(finished) not in card
    counts = read_details(finished / "metrics" / "generation.json")
    assert f"{counts['accepted']} of {counts['attempted']} attempts" in scored
    scores = read_details(finished / "metrics" / "evaluation.json")
    gate = scores["sets"]["raw"]["gate"]["macro_f1"]
    assert f"| raw images by the gate | {gate:.3f} |" in scored and "| value |" not in unscored
    assert "duplicates in the data set: see `data/prepared/card.json`" in unscored
    assert "duplicates in the data set: none, exact or near\n" in scored


def test_card_escapes_markup_and_shows_medmnist_loader(finished):
    assert escape_markdown("a | b\n<script>") == "a \\| b &lt;script&gt;"
    assert escape_markdown("![x](y) `z`") == "\\!\\[x\\](y) \\`z\\`"
    params = load_params(finished / "params.yaml")
    dataset, base = params.section("dataset", AnyDataset), params.section("base", BaseModelSettings)
    assert base_name(base) == "base"
    prompts = ["a | b", *labels.PATHMNIST[1:]]
    dataset = dataset.model_copy(update={"image_size": 64})
    recipe = Recipe("b", "r2", 1, "plain", prompts, "net", dataset, base, params.section("generation", GenerationSettings))
    card = dataset_card(recipe, read_details(finished / "metrics" / "generation.json"))
    assert "| adipose | a \\| b |" in card and 'medmnist.PathMNIST(split="train", root=".", size=64)' in card
