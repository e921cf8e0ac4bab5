"""Plausible, deterministic metrics, plots and logs of a complete run, without running it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
from conftest import tiny_tree, write_params
from PIL import Image

from pathsynth.core.params import load_params
from pathsynth.data import labels

SLUGS = labels.SLUGS
N = len(SLUGS)
SLOTS = 20
HARD = (0.0, 0.0, 0.15, 0.05, 0.2, 0.45, 0.1, 0.3, 0.25)
BY = ("gate", "judge", "colour")


def write_run(folder: Path, seed: int = 0, skill: float = 1.0) -> Path:
    """Writes params.yaml, metrics/, plots/ and logs/ to `folder`, and returns it. A `skill` from 0 to 1 improves the scores."""
    rng = np.random.default_rng(seed)
    seen = {name: _predictions(rng, count, skill) for name, count in (("raw", SLOTS), ("accepted", SLOTS - 2))}
    seen["accepted"]["gate"] = seen["accepted"]["tissue"]
    folder.mkdir(parents=True, exist_ok=True)
    write_params(folder / "params.yaml", tiny_tree())
    for name, data in metrics(seen).items():
        _write_json(folder / "metrics" / f"{name}.json", data)
    tables = folder / "plots" / "evaluation"
    for name, table in seen.items():
        columns = {by: [SLUGS[i] for i in table[by]] for by in BY}
        slugs = [SLUGS[i] for i in table["tissue"]]
        _write_table(tables / f"{name}.csv", {"tissue": slugs, "slot": table["slot"].tolist(), **columns})
    _write_charts(tables, folder / "plots" / "curves")
    for name in (*SLUGS, "overview"):
        _write_picture(tables / "plates" / f"{name}.png", rng, 1352 if name != "overview" else 1250, 806)
    _write_picture(tables / "plates" / "pairs.png", rng, 800, 260)
    for stage, spent in (("train_lora", 754.0), ("generate_filtered", 123.5)):
        _write_json(folder / "logs" / "tiny" / "r2" / f"{stage}.json", log(folder, stage, spent))
    return folder


def log(folder: Path, stage: str, spent: float) -> dict:
    """Builds the log of a stage that ran with the parameters in `folder`."""
    return {
        "stage": stage, "benchmark": "tiny", "lora": "r2", "seed": 7, "seconds": spent, "processes": 1,
        "fingerprint": load_params(folder / "params.yaml").fingerprint(), "peak_memory_mb": 2345.6,
        "peak_gpu_memory_mb": None, "device": "cpu (2 threads)", "versions": {"python": "3.11.2", "torch": "2.14.1"},
    }  # fmt: skip


def metrics(seen: dict) -> dict[str, dict]:
    """Builds the contents of the metrics files by name."""
    judged = scored(seen["raw"], "judge")
    gated = scored(seen["raw"], "gate")
    gap = round(gated["macro_f1"] - judged["macro_f1"], 6)
    evaluation = {
        **gated, "judge": judged, "colour": scored(seen["raw"], "colour"),
        "filtered_judge": scored(seen["accepted"], "judge"), "filtered_colour": scored(seen["accepted"], "colour"),
        "untuned": scored(seen["raw"] | {"judge": np.roll(seen["raw"]["judge"], 15)}, "judge"),
        "gate_gaming": {"difference": gap, "low": gap - 0.03, "high": gap + 0.03},
        "real_images": {
            "gate": {"val": 0.996, "test": 0.991}, "judge": {"val": 0.981, "test": 0.972}, "colour": {"val": 0.83, "test": 0.71}
        },
        "realism": _realism(),
        "copying": {name: {by: _copying(name, by) for by in ("features", "pixels")} for name in ("raw", "accepted")},
        "calibration": {"gate": {"val": {"ece": 0.006}, "test": {"ece": 0.0093}}},
        "cost": _cost(),
    }  # fmt: skip
    counts = {"attempted": 40, "accepted": SLOTS - 2, "acceptance_rate": 0.45, "unfilled": 2}
    total = {"attempted": 40 * N, "accepted": (SLOTS - 2) * N, "acceptance_rate": 0.45, "unfilled": 2 * N}
    split = {"accuracy": 0.912, "macro_f1": 0.9, "auc": 0.987, "ece": 0.034}
    return {
        "evaluation": evaluation,
        "generation": {**total, "per_tissue": {slug: dict(counts) for slug in SLUGS}},
        "gate": {"epoch": 3, "val": split, "test": split},
        "judge": {"epoch": 3, "val": split, "test": split},
        "lora": {"trainable_parameters": 1056256, "images_seen": 11200, "loss": 0.0847, "adapter_bytes": 4231168},
        "robustness": {"n_images": 90, "gate": _robust(0.99), "judge": _robust(0.96)},
        "usefulness": _USEFUL | {name: _useful(mean) for name, mean in _TRAINED.items()},
    }


_USEFUL = {"repeats": 5, "trained_on": "accepted", "steps": 120}
_TRAINED = {"real": 0.93, "synthetic": 0.71, "real_and_synthetic": 0.94, "twice_real": 0.95}


def scored(table: dict, by: str) -> dict:
    """Scores one set, with intervals of a fixed width."""
    counts = np.zeros((N, N))
    np.add.at(counts, (table["tissue"], table[by]), 1)
    hits = np.diag(counts)
    recall, precision = hits / np.maximum(1, counts.sum(1)), hits / np.maximum(1, counts.sum(0))
    f1 = 2 * hits / np.maximum(1, counts.sum(0) + counts.sum(1))
    averages = {
        "macro_f1": f1.mean(), "macro_precision": precision.mean(), "macro_recall": recall.mean(),
        "accuracy": hits.sum() / counts.sum()
    }  # fmt: skip
    result = {name: round(float(value), 6) for name, value in averages.items()}
    for name, value in list(result.items()):
        result |= {f"{name}_low": round(max(0, value - 0.04), 6), f"{name}_high": round(min(1, value + 0.04), 6)}
    rows = {
        slug: {
            "precision": round(float(precision[i]), 6), "recall": round(float(recall[i]), 6), "f1": round(float(f1[i]), 6),
            "f1_low": round(max(0.0, float(f1[i]) - 0.09), 6), "f1_high": round(min(1.0, float(f1[i]) + 0.07), 6),
        }
        for i, slug in enumerate(SLUGS)
    }  # fmt: skip
    return {**result, "n_images": len(table["tissue"]), "per_tissue": rows}


def _predictions(rng: np.random.Generator, slots: int, skill: float) -> dict[str, np.ndarray]:
    tissue, slot = np.repeat(np.arange(N), slots), np.tile(np.arange(slots), N)
    table = {"tissue": tissue, "slot": slot}
    for by, worse in zip(BY, (0.7, 1.0, 2.0), strict=True):
        wrong = rng.random(len(tissue)) < np.take(HARD, tissue) * worse * (2 - skill)
        table[by] = np.where(wrong, (tissue + rng.integers(1, N, len(tissue))) % N, tissue)
    return table


_INTERVALS = {"frechet": "frechet_distance", "kernel": "kernel_distance", "precision": "precision", "density": "density"}


def _realism() -> dict:
    def one(distance: float, recall: float, images: int, bias: float | None) -> dict:
        scores = {
            "n_images": images, "n_reference": 1800, "frechet_distance": distance, "kernel_distance": distance / 9000,
            "precision": 0.81, "recall": recall, "density": 1.034, "coverage": recall + 0.1,
        }  # fmt: skip
        ends = {
            f"{name}_{end}": scores[key] * factor
            for name, key in _INTERVALS.items()
            for end, factor in (("low", 0.9), ("high", 1.1))
        }  # fmt: skip
        few = {"frechet_bias": "real images: 1800, at least 1900 are needed"}
        known = {"frechet_bias": bias} if bias is not None else {"undefined": few}
        tissues = {
            slug: {**{k: v for k, v in scores.items() if k != "recall"}, "coverage": round(0.95 - HARD[i] * (1.3 - recall), 4)}
            | ({"undefined": {"recall": "images: 3, at least 6 are needed"}} if i == 0 else {"recall": recall - HARD[i]})
            for i, slug in enumerate(SLUGS)
        }  # fmt: skip
        return {**scores, **ends, **known, "per_tissue": tissues}

    return {
        "extractor": "judge", "dimensions": 1024, "nearest_neighbours": 5, "raw": one(41.23, 0.62, 180, 8.9),
        "accepted": one(37.9, 0.55, 162, 9.4), "val": one(4.3, 0.91, 180, 8.8), "floor": one(12.1, 0.84, 180, None),
        "variety_lost": {"recall": 0.07, "coverage": 0.07},
    }  # fmt: skip


def _copying(name: str, by: str) -> dict:
    if (name, by) == ("raw", "pixels"):
        why = "validation images: 18, a quantile of 0.01 needs 100"
        return {"n_images": 180, "n_val": 18, "left_out": {"smooth_muscle": "no unit"}, "undefined": {"share_below": why}}
    if by == "pixels":
        found = {"share_below": 0.0444, "low": 0.021, "high": 0.08, "p_more": 0.0031}
    else:
        found = {"share_below": 0.0056, "low": 0.0, "high": 0.031, "p_more": 0.774}
    return {**found, "expected": 0.01, "n_images": 180, "n_val": 540}


def _cost() -> dict:
    rows = {
        slug: {"attempts_per_accepted": round(1 / (1 - hard), 4), "shortfall": int(hard > 0.4)}
        for slug, hard in zip(SLUGS, HARD, strict=True)
    }
    rows["smooth_muscle"].pop("attempts_per_accepted")
    filled = {str(attempt): round(1 - 0.17 * 0.45**attempt, 4) for attempt in range(1, 7)}
    return {"attempts_per_accepted": 1.21, "shortfall": 1, "filled_after": filled, "per_tissue": rows}  # fmt: skip


def _robust(clean: float) -> dict:
    def one(lost: float) -> dict:
        return {"accuracy": round(clean - lost, 3), "macro_f1": round(clean - lost - 0.01, 3)}

    return {
        "clean": one(0), "jpeg": {"quality_75": one(0.02), "quality_50": one(0.08), "quality_25": one(0.2)},
        "stain": {f"{stain}_x{factor}": one(0.1) for stain in ("haematoxylin", "eosin") for factor in ("0_75", "1_25")},
        "blur": {"sigma_0_5": one(0.03), "sigma_1": one(0.2), "sigma_2": one(0.5)},
    }  # fmt: skip


def _useful(mean: float) -> dict:
    rows = {slug: {"f1_mean": round(mean - HARD[i] / 3, 4), "f1_std": 0.021} for i, slug in enumerate(SLUGS)}
    return {
        "n_images": 162, "accuracy_mean": mean, "accuracy_std": 0.012, "macro_f1_mean": mean - 0.01, "macro_f1_std": 0.013,
        "per_tissue": rows,
    }  # fmt: skip


def _write_charts(tables: Path, curves: Path) -> None:
    kept = [0.83, 0.82, 0.77, 0.71, 0.6, 0.43, 0.1]
    thresholds = {
        "threshold": [0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99], "kept_share": kept,
        "judge_accuracy": [0.86, 0.865, 0.88, 0.9, 0.93, 0.95, 0.97],
        "expected_attempts": [1.2, 1.22, 1.3, 1.4, 1.7, 2.9, None], "n_kept": [int(180 * share) for share in kept],
        "tissues_lost": [0, 0, 0, 0, 0, 0, 2],
    }  # fmt: skip
    pairs = {
        "space": ["features", "features", "pixels"], "rank": [1, 2, 1],
        "tissue": list(SLUGS[:3]), "slot": [4, 0, 11], "distance": [0.31, 0.38, 0.412],
        "train_index": [1234, 55, 0], "train_tissue": list(SLUGS[1:4]),
    }  # fmt: skip
    lows = np.arange(10) / 10
    confidence = np.where(lows < 0.3, np.nan, lows + 0.06)
    bins = {"low": lows, "high": lows + 0.1, "n": np.where(lows < 0.3, 0, 30), "confidence": confidence}
    reliability = [
        {"set": name, **bins, "accuracy": confidence - loss * lows} for name, loss in (("test", 0.02), ("raw", 0.15))
    ]
    _write_table(tables / "thresholds.csv", thresholds)
    _write_table(tables / "pairs.csv", pairs)
    _write_table(tables / "reliability.csv", pd.concat(map(pd.DataFrame, reliability)))
    filled = [(slug, attempt, 1 - HARD[i] ** attempt) for i, slug in enumerate(SLUGS) for attempt in range(1, 7)]
    filled += [("all", attempt, 1 - float(np.mean([hard**attempt for hard in HARD]))) for attempt in range(1, 7)]
    _write_table(tables / "filled.csv", pd.DataFrame(filled, columns=["tissue", "attempt", "filled"]))
    _write_curve(curves / "lora/plots/metrics/train/loss.tsv", [0.09 + 0.02 * np.sin(i) + 0.3 / (i + 1) for i in range(70)], 10)
    for who, best in (("gate", 0.99), ("judge", 0.97)):
        _write_curve(curves / who / "plots/metrics/val/macro_f1.tsv", [best - 0.5 / (i + 1) ** 2 for i in range(8)], 1)


def _write_curve(path: Path, values: list[float], step: int) -> None:
    _write_table(path, {"step": [(i + 1) * step for i in range(len(values))], path.stem: values}, "\t")


def _write_table(path: Path, columns: dict | pd.DataFrame, separator: str = ",") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(columns).to_csv(path, index=False, sep=separator, float_format="%.4f", lineterminator="\n")


def _write_json(path: Path, data: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data), encoding="utf-8")


def _write_picture(path: Path, rng: np.random.Generator, width: int, height: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    small = rng.integers(120, 255, (height // 26, width // 26, 3), np.uint8)
    Image.fromarray(small).resize((width, height), Image.Resampling.NEAREST).save(path, optimize=True)
