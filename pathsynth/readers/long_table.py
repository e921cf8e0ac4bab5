"""All answers as a long table, one per row, for other programs such as R."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pathsynth.readers.answers import Answers, Key, PreferenceAnswer, PreferenceTrial, StudyAnswer, StudyTrial

if TYPE_CHECKING:
    import pandas as pd


def build_long_table(key: Key, readers: Sequence[Answers]) -> pd.DataFrame:
    """Lists all answers with what the key says about their trials.

    Args:
        key: of the study.
        readers: validated answers to it, one per reader.
    """
    import pandas as pd

    trials = {trial.id: trial for trial in key.trials}
    return pd.DataFrame(
        [
            {"reader": f"R{number}", "uuid": reader.reader, "name": reader.name} | _row(trials[answer.id], answer)
            for number, reader in enumerate(readers, 1)
            for answer in reader.answers
        ]
    )


def _row(trial: Any, answer: Any) -> dict[str, Any]:
    if isinstance(answer, StudyAnswer):
        return _study_row(trial, answer)
    return _preference_row(trial, answer)


def _study_row(trial: StudyTrial, answer: StudyAnswer) -> dict[str, Any]:
    return {
        "trial": trial.id,
        "image": trial.image,
        "repeats": trial.repeats or "",
        "tissue": trial.tissue,
        "origin": trial.origin,
        "named_tissue": answer.tissue,
        "named_origin": answer.origin,
        "confidence": answer.confidence,
        "seconds": answer.seconds,
        "tissue_right": int(answer.tissue == trial.tissue),
        "origin_right": int(answer.origin == trial.origin),
        "gate": trial.gate.predicted if trial.gate else "",
        "judge": trial.judge.predicted if trial.judge else "",
    }


def _preference_row(trial: PreferenceTrial, answer: PreferenceAnswer) -> dict[str, Any]:
    preferred = {"left": trial.left, "right": trial.right, "tie": ""}
    return {
        "trial": trial.id,
        "tissue": trial.tissue,
        "slot": "" if trial.slot is None else str(trial.slot),
        "question": trial.question,
        "left": trial.left,
        "right": trial.right,
        "choice": answer.choice,
        "preferred": preferred[answer.choice],
        "seconds": answer.seconds,
    }
