"""Keys and answers of studies with known truth, in the format that the pages write."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
from scipy.special import expit

STUDY = "5" * 64
CLASSES = ("adipose", "mucus", "smooth_muscle")


def make_key(per_group: int = 10, repeats: int = 0, classes: Sequence[str] = CLASSES, **changed: Any) -> dict[str, Any]:
    """Key of a study with `per_group` images of each tissue and origin; gate and judge are right about all of them."""
    trials: list[dict[str, Any]] = []
    for tissue in classes:
        for origin in ("real", "synthetic"):
            for number in range(per_group):
                seen = {"predicted": tissue, "confidence": 0.9}
                image = f"{tissue}-{origin}-{number}"
                trials.append({"tissue": tissue, "origin": origin, "image": image, "source": {}, "gate": seen, "judge": seen})
    trials += [trial | {"repeats": f"{number + 1:03d}"} for number, trial in enumerate(trials[:repeats])]
    for number, trial in enumerate(trials):
        trial["id"] = f"{number + 1:03d}"
    key = {"format": "pathsynth-key", "version": 1, "kind": "study", "study": STUDY, "created_with": "0.1.0"}
    return key | {"classes": list(classes), "stand_in": True, "trials": trials} | changed


def make_answers(key: Mapping[str, Any], answers: Sequence[dict], reader: int = 1, **changed: Any) -> dict[str, Any]:
    """Answers of one reader."""
    whole = {"format": "pathsynth-answers", "version": 1, "kind": key["kind"], "study": key["study"]}
    whole |= {"reader": str(UUID(int=reader)), "name": "", "started": f"2026-01-01T10:00:{reader % 60:02d}.000Z"}
    whole |= {"saved": "2026-01-01T11:00:00.000Z", "complete": len(answers) == len(key["trials"]), "answers": list(answers)}
    return whole | changed


def answer_truly(key: Mapping[str, Any], **changed: Any) -> list[dict[str, Any]]:
    """Answers that are all right, but for what is changed."""
    return [
        {"id": trial["id"], "tissue": trial["tissue"], "origin": trial["origin"], "confidence": 5, "seconds": 2.0} | changed
        for trial in key["trials"]
    ]


def simulate_reader(
    key: Mapping[str, Any], rates: Mapping[str, float], difficulty: Mapping[str, float], rng: np.random.Generator
) -> list[dict[str, Any]]:
    """Answers of a reader with logits of naming right and of calling synthetic, to which the difficulty of an image is added.

    Args:
        key: of the study.
        rates: logits `tissue_real`, `tissue_synthetic`, `calls_real`, `calls_synthetic` (saying "synthetic" of either origin).
        difficulty: logit of each image, by its name.
        rng: source of the draws.
    """
    answers = []
    for trial in key["trials"]:
        origin, harder = trial["origin"], difficulty[trial["image"]]
        right = rng.random() < expit(rates[f"tissue_{origin}"] + harder)
        synthetic = rng.random() < expit(rates[f"calls_{origin}"] + harder)
        others = [tissue for tissue in key["classes"] if tissue != trial["tissue"]]
        tissue = trial["tissue"] if right else others[rng.integers(len(others))]
        answer = {"id": trial["id"], "tissue": tissue, "origin": "synthetic" if synthetic else "real"}
        answers.append(answer | {"confidence": int(rng.integers(1, 6)), "seconds": float(rng.exponential(4.0))})
    return answers


def write_files(folder: Path, key: Mapping[str, Any], readers: Sequence[Mapping[str, Any]]) -> tuple[list[Path], Path]:
    """Writes a key and the answers of readers, and returns their paths."""
    paths = []
    for number, reader in enumerate(readers, 1):
        paths.append(folder / f"answers-{number}.json")
        paths[-1].write_text(json.dumps(reader))
    key_path = folder / "study_key.json"
    key_path.write_text(json.dumps(key))
    return paths, key_path


def make_preference_key(
    pairs: Sequence[tuple[str, str]], slots: int = 4, classes: Sequence[str] = CLASSES, **changed: Any
) -> dict:
    """Key of a page that shows each pair for each tissue and slot, with sides that alternate."""
    trials = [
        {"tissue": tissue, "question": f"Which shows {tissue} better?", "left": pair[slot % 2], "right": pair[1 - slot % 2]}
        | {"slot": slot}
        for tissue in classes
        for slot in range(slots)
        for pair in pairs
    ]
    trials = [{"id": f"{number + 1:03d}"} | trial for number, trial in enumerate(trials)]
    key = {"format": "pathsynth-key", "version": 1, "kind": "preference", "study": STUDY, "created_with": "0.1.0"}
    return key | {"classes": list(classes), "trials": trials} | changed


def simulate_choices(
    key: Mapping[str, Any], strengths: Mapping[str, float], rng: np.random.Generator, ties: float = 0.0
) -> list[dict[str, Any]]:
    """Choices of a reader by the Bradley-Terry model, of which a share are ties."""
    answers = []
    for trial in key["trials"]:
        wins = rng.random() < expit(strengths[trial["left"]] - strengths[trial["right"]])
        choice = "tie" if rng.random() < ties else "left" if wins else "right"
        answers.append({"id": trial["id"], "choice": choice, "seconds": 3.0})
    return answers
