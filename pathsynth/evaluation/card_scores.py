"""Fills the scores into the card of a synthetic set."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# What the stage `generate_filtered` leaves in the card: this mark and the line after it.
PLACEHOLDER = re.compile(r"<!-- scores -->\n.*")
_SCORES = """\
| macro F1 of prompted against seen class | value | 95 % interval |
|---|---|---|
{rows}

The judge is another architecture that took no part in filtering; on the data set's test images it is right on {judge:.1%}. Of
the accepted images {closer} lie closer to a training image than 99 % of validation images do (1 % is expected), by features.
Fréchet distance to the training images {frechet}, kernel distance {kernel}, coverage {coverage}; validation images have
{real_frechet}, {real_kernel} and {real_coverage}."""


def fill_scores(card: str, evaluation: Mapping[str, Any]) -> str:
    """The card of a set with the table of its scores.

    Args:
        card: text with the mark of `generate_filtered`; one without it is returned as it is.
        evaluation: dict of metrics/evaluation.json.
    """
    table = _scores(evaluation)
    return PLACEHOLDER.sub(lambda _: table, card, count=1)


def _scores(evaluation: Mapping[str, Any]) -> str:
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
        judge=evaluation["real_images"]["judge"]["test"],
        closer=f"{copies['share_below']:.1%}" if "share_below" in copies else "an unknown share",
        frechet=_digits(accepted, "frechet_distance"),
        kernel=_digits(accepted, "kernel_distance"),
        coverage=_digits(accepted, "coverage"),
        real_frechet=_digits(real, "frechet_distance"),
        real_kernel=_digits(real, "kernel_distance"),
        real_coverage=_digits(real, "coverage"),
    )


def _digits(scores: Mapping[str, Any], name: str) -> str:
    return f"{scores[name]:.3f}" if name in scores else "not defined"
