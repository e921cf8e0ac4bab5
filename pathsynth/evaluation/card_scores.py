"""Fills the scores into a generated set's card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pathsynth.data.provenance import SCORES_PLACEHOLDER

_SCORES = """\
| macro F1 of prompted against predicted class | value | 95 % interval |
|---|---|---|
{rows}

The gate's accuracy is {gate_val:.1%} on the data set's validation images and {gate_test:.1%} on its test images. The judge has
another architecture and took no part in filtering; its accuracy on the test images is {judge:.1%}.
In feature space {closer} of the accepted images are closer to a training image than 99 % of validation images (expected: 1 %).
Fréchet distance to the training images {frechet}, kernel distance {kernel}, coverage {coverage}; validation images have
{real_frechet}, {real_kernel} and {real_coverage}."""


def fill_scores(card: str, evaluation: Mapping[str, Any]) -> str:
    """Returns a card with the table of its scores filled in.

    Args:
        card: text with `SCORES_PLACEHOLDER`; any other text is returned unchanged.
        evaluation: dict of metrics/evaluation.json.
    """
    return card.replace(SCORES_PLACEHOLDER, _format_scores(evaluation), 1)


def _format_scores(evaluation: Mapping[str, Any]) -> str:
    sets = {
        "raw images by the gate": evaluation,
        "raw images by the judge": evaluation["judge"],
        "accepted images by the judge": evaluation["filtered_judge"],
        "raw images by colour alone": evaluation["colour"],
    }
    rows = [
        f"| {name} | {scores['macro_f1']:.3f} | {scores['macro_f1_low']:.3f} to {scores['macro_f1_high']:.3f} |"
        if scores["n_images"]
        else f"| {name} | no images | |"
        for name, scores in sets.items()
    ]
    accepted, real = evaluation["realism"]["accepted"], evaluation["realism"]["val"]
    copies = evaluation["copying"]["accepted"]["features"]
    return _SCORES.format(
        rows="\n".join(rows),
        gate_val=evaluation["real_images"]["gate"]["val"],
        gate_test=evaluation["real_images"]["gate"]["test"],
        judge=evaluation["real_images"]["judge"]["test"],
        closer=f"{copies['share_below']:.1%}" if "share_below" in copies else "an unknown share",
        frechet=_format_score(accepted, "frechet_distance"),
        kernel=_format_score(accepted, "kernel_distance"),
        coverage=_format_score(accepted, "coverage"),
        real_frechet=_format_score(real, "frechet_distance"),
        real_kernel=_format_score(real, "kernel_distance"),
        real_coverage=_format_score(real, "coverage"),
    )


def _format_score(scores: Mapping[str, Any], name: str) -> str:
    return f"{scores[name]:.3f}" if name in scores else "not defined"
