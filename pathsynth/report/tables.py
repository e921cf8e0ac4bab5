"""What accuracy does not say of a run, as a Markdown table: generated images beside those of the data set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pathsynth.report.pages import decimals, interval, percent, probability, significant

HEAD = ("question", "generated images", "images of the data set, for comparison")


def score_table(evaluation: Mapping[str, Any], usefulness: Mapping[str, Any]) -> str:
    """Colours, realism, variety, copies and usefulness of one run.

    Args:
        evaluation: dict of metrics/evaluation.json.
        usefulness: dict of metrics/usefulness.json.

    Returns:
        A Markdown table with a newline at the end.

    Raises:
        KeyError: a part is missing.
    """
    colour, realism = evaluation["colour"], evaluation["realism"]
    accepted = realism["accepted"]
    features = f"by features of {realism['extractor']}"
    copies = evaluation["copying"]["accepted"]["features"]
    rows = [
        (
            "macro F1 of raw images by colour alone",
            f"{decimals(colour.get('macro_f1'))} ({interval(colour.get('macro_f1_low'), colour.get('macro_f1_high'))})",
            f"right on {percent(evaluation['real_images']['colour']['test'])} of test",
        ),
        (
            f"do accepted images look like the data set? kernel distance {features}",
            _with_interval(accepted, "kernel"),
            _of_data_set(realism, "kernel_distance"),
        ),
        (
            "Fréchet distance, to be compared between equal numbers of images alone",
            f"{_with_interval(accepted, 'frechet')}, {accepted['n_images']} images",
            _of_data_set(realism, "frechet_distance"),
        ),
        *(
            (f"are they as varied? {name}", _number(accepted, name), _of_data_set(realism, name))
            for name in ("recall", "coverage")
        ),
        (
            "are they copies? nearer to a training image than 99 % of validation images are",
            _copies(copies),
            "1 % by definition",
        ),
        (
            "accuracy on test of a classifier trained on them",
            _trained(usefulness, "synthetic"),
            f"real ones {_trained(usefulness, 'real')}",
        ),
        (
            "the same with those real images added",
            _trained(usefulness, "real_and_synthetic"),
            f"twice as many real ones {_trained(usefulness, 'twice_real')}",
        ),
    ]
    return "".join(f"| {' | '.join(row)} |\n" for row in (HEAD, ("---",) * len(HEAD), *rows))


def _of_data_set(realism: Mapping[str, Any], name: str) -> str:
    """The score of validation and test images, with their number where it is another one: distances depend on it."""
    cells = []
    for words, key in (("validation", "val"), ("test", "floor")):
        count = realism[key]["n_images"]
        more = "" if count == realism["accepted"]["n_images"] else f" ({count} images)"
        cells.append(f"{words} {_number(realism[key], name)}{more}")
    return ", ".join(cells)


def _number(scores: Mapping[str, Any], name: str) -> str:
    return significant(scores[name]) if name in scores else f"not defined ({scores['undefined'][name]})"


def _with_interval(scores: Mapping[str, Any], name: str) -> str:
    value = _number(scores, f"{name}_distance")
    ends = [scores.get(f"{name}_{end}") for end in ("low", "high")]
    return value if None in ends else f"{value} ({significant(ends[0])} to {significant(ends[1])})"


def _copies(scores: Mapping[str, Any]) -> str:
    if "share_below" not in scores:
        return f"not defined ({scores['undefined']['share_below']})"
    ends = f"{percent(scores['low'])} to {percent(scores['high'])}"
    return f"{percent(scores['share_below'])} ({ends}), p = {probability(scores['p_more'])}"


def _trained(usefulness: Mapping[str, Any], source: str) -> str:
    scores = usefulness[source]
    if "accuracy_mean" not in scores:
        return f"not defined ({scores['undefined']})"
    return f"{decimals(scores['accuracy_mean'])} ± {decimals(scores['accuracy_std'])} ({scores['n_images']} images)"
