"""Fills the scores and the duplicates of the data set into a generated set's card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pathsynth.data.duplicates import describe_duplicates, parse_duplicates
from pathsynth.data.provenance import DUPLICATES_PLACEHOLDER, SCORES_PLACEHOLDER

_SCORES = """\
| macro F1 of prompted against predicted class | value | 95 % interval over images |
|---|---|---|
{rows}

The judge has another architecture than the gate and took no part in filtering. On the data set's test images the judge's
accuracy is {judge:.1%}, the gate's {gate:.1%}. Open set: images unlike their class count as wrong.
Close to a training image in pixels: {copies} of the accepted images; expected: {expected}. The check finds {control} of copies
that were moved and restained.
Kernel distance of the accepted images to the training images: {kernel} in features, {structure} in structure; of validation
images: {real_kernel} and {real_structure}."""


def fill_scores(card: str, evaluation: Mapping[str, Any]) -> str:
    """Returns a card with the table of its scores and the duplicates of the data set filled in.

    Args:
        card: text with `SCORES_PLACEHOLDER` and `DUPLICATES_PLACEHOLDER`; any other text is returned unchanged.
        evaluation: dict of metrics/evaluation.json; its `duplicates` may be absent.
    """
    if "duplicates" in evaluation:
        found = describe_duplicates(parse_duplicates(evaluation["duplicates"]))
        card = card.replace(DUPLICATES_PLACEHOLDER, "; ".join(found) or "none, exact or near", 1)
    return card.replace(SCORES_PLACEHOLDER, _format_scores(evaluation), 1)


def _format_scores(evaluation: Mapping[str, Any]) -> str:
    sets = evaluation["sets"]
    observed = {
        "raw images by the judge": ("raw", "judge"),
        "raw images by the judge, open set": ("raw", "open_set"),
        "raw images by the gate": ("raw", "gate"),
        "raw images by colour alone": ("raw", "colour"),
        "accepted images by the judge": ("accepted", "judge"),
    }
    rows = []
    for name, (key, by) in observed.items():
        scores = sets[key][by] if sets[key]["n_images"] else None
        rows.append(
            f"| {name} | {scores['macro_f1']:.3f} | {scores['macro_f1_low']:.3f} to {scores['macro_f1_high']:.3f} |"
            if scores
            else f"| {name} | no images | |"
        )
    copies = sets["accepted"].get("copying", {}).get("pixels", {})
    distances = {key: _kernel_distances(sets[key]) for key in ("accepted", "val")}
    return _SCORES.format(
        rows="\n".join(rows),
        gate=evaluation["real_images"]["gate"]["test"],
        judge=evaluation["real_images"]["judge"]["test"],
        copies=_format_share(copies, "share"),
        expected=_format_share(copies, "expected"),
        control=_format_share(evaluation["copying_control"]["pixels"], "share"),
        kernel=distances["accepted"][0],
        structure=distances["accepted"][1],
        real_kernel=distances["val"][0],
        real_structure=distances["val"][1],
    )


def _kernel_distances(scored: Mapping[str, Any]) -> list[str]:
    """Formats the kernel distances of a set in features and in structure."""
    known = [scored.get(space, {}).get("kernel_distance") for space in ("features", "structure")]
    return ["not defined" if value is None else f"{value:.3f}" for value in known]


def _format_share(found: Mapping[str, Any], name: str) -> str:
    return f"{found[name]:.1%}" if name in found else "an unknown share"
