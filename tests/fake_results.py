"""Plausible, deterministic metrics, plots, logs and anchors of a complete run, without running it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
from conftest import tiny_tree, write_params
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pathsynth.core.params import load_params
from pathsynth.data import labels
from pathsynth.evaluation.contact_sheets import BLOCKS, DATA_SET, RAW, BoundingBox

SLUGS = labels.SLUGS
N = len(SLUGS)
SLOTS = 20
HARD = (0.0, 0.0, 0.15, 0.05, 0.2, 0.45, 0.1, 0.3, 0.25)
BY = ("gate", "judge", "colour")
# Images per tissue, how often observers are wrong (as a factor), and distance from real images.
SETS = {
    "raw": (SLOTS, 1.0, 1.0), "accepted": (SLOTS - 2, 0.8, 0.9), "untuned": (SLOTS, 2.6, 4.0), "paraphrased": (SLOTS, 1.6, 1.3),
    "val": (SLOTS, 0.1, 0.1), "test": (SLOTS, 0.2, 0.3),
}  # fmt: skip
ANCHORS = {
    "val": 0.1, "test": 0.3, "vae_copies": 0.2, "moved_copies": 0.25, "shuffled_4x4": 1.5, "shuffled_8x8": 2.5,
    "shuffled_pixels": 6.0, "random_phases": 5.0,
}  # fmt: skip


def write_run(folder: Path, seed: int = 0, skill: float = 1.0) -> Path:
    """Writes the files of a run to `folder`, and returns it. A `skill` from 0 to 1 improves the scores."""
    rng = np.random.default_rng(seed)
    seen = {name: _predictions(rng, slots, worse * (2 - skill)) for name, (slots, worse, _) in SETS.items()}
    seen["accepted"]["gate"] = seen["accepted"]["tissue"]
    folder.mkdir(parents=True, exist_ok=True)
    write_params(folder / "params.yaml", tiny_tree())
    measured = metrics(seen)
    for name, data in measured.items():
        _write_json(folder / "metrics" / f"{name}.json", data)
    sets = {name: scored_set(seen["test"], distance) for name, distance in ANCHORS.items()}
    anchors = {"real_images": measured["evaluation"]["real_images"], "sets": sets}
    _write_json(folder / "metrics" / "anchors" / "tiny.json", anchors)
    tables = folder / "plots" / "evaluation"
    for name in ("raw", "accepted"):
        columns = {by: [SLUGS[i] for i in seen[name][by]] for by in BY}
        slugs = [SLUGS[i] for i in seen[name]["tissue"]]
        _write_table(tables / f"{name}.csv", {"tissue": slugs, "slot": seen[name]["slot"].tolist(), **columns})
    _write_charts(tables, folder / "plots" / "curves")
    for name in SLUGS:
        _write_picture(tables / "plates" / f"{name}.png", rng, 1352, 806, (DATA_SET, RAW))
    _write_picture(tables / "plates" / "overview.png", rng, 1250, 806)
    _write_picture(tables / "plates" / "pairs.png", rng, 800, 260)
    for step in (0, 100, 1000, 10000):
        _write_picture(folder / "plots" / "training" / f"{step:04d}.png", rng, 64 * N, 64)
    for stage, spent in (("train_lora", 754.0), ("generate_filtered", 123.5)):
        _write_json(folder / "logs" / "tiny" / "r2" / f"{stage}.json", log(folder, stage, spent))
    return folder


def log(folder: Path, stage: str, spent: float) -> dict:
    """Builds the log of a stage that ran with the parameters in `folder`."""
    params = load_params(folder / "params.yaml")
    return {
        "stage": stage, "benchmark": "tiny", "lora": "r2", "seeds": params.seeds.model_dump(), "seconds": spent, "processes": 1,
        "fingerprint": params.fingerprint(), "peak_memory_mb": 2345.6, "peak_gpu_memory_mb": None, "device": "cpu (2 threads)",
        "versions": {"python": "3.11.2", "torch": "2.14.1"},
    }  # fmt: skip


def metrics(seen: dict) -> dict[str, dict]:
    """Builds the contents of the metrics files by name."""
    sets = {name: scored_set(seen[name], distance) for name, (_, _, distance) in SETS.items()}
    gap = round(sets["raw"]["gate"]["macro_f1"] - sets["raw"]["judge"]["macro_f1"], 6)
    evaluation = {
        "extractor": "judge", "nearest_neighbours": 5, "sets": sets,
        "copying_control": {"pixels": _copies(0.93, 180), "structure": _copies(0.88, 180)},
        "observers": {
            "real_test": _agreement(2, 0.31, 0.31), "raw": _agreement(15, 6.12, 0.45),
            "gate_minus_judge": {"difference": gap, "low": gap - 0.03, "high": gap + 0.03},
            "filter_gain": {"difference": 0.042, "low": 0.019, "high": 0.066, "n_images": 162},
            "disputed": {"n_images": 162, "n_disputed": 9, "share": 0.0556, "low": 0.0257, "high": 0.1029},
        },
        "real_images": {
            "gate": {"val": 0.996, "test": 0.991}, "judge": {"val": 0.981, "test": 0.972}, "colour": {"val": 0.83, "test": 0.71}
        },
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
        "lora": {
            "trainable_parameters": 1056256, "images_seen": 11200, "loss": 0.0847, "validation_loss": 0.0871,
            "adapter_bytes": 4231168,
        },
        "robustness": {"n_images": 90, "gate": _robust(0.99), "judge": _robust(0.96)},
        "memorisation": {
            "lora": {"auc": 0.531, "low": 0.502, "high": 0.56, "train_loss": 0.0812, "val_loss": 0.0839},
            "base": {"auc": 0.498, "low": 0.469, "high": 0.527, "train_loss": 0.1204, "val_loss": 0.1201},
            "n_train": 540, "n_val": 540, "timesteps": 10,
        },
        "usefulness": _usefulness(),
    }  # fmt: skip


def scored_set(table: dict, distance: float) -> dict:
    """Scores one set at a `distance` from real images, that of raw images being 1."""
    judged = scored(table, "judge")
    open_set = {name: round(0.9 * judged[name], 6) for name in ("macro_f1", "macro_f1_low", "macro_f1_high")}
    tissues = {slug: {"f1": round(0.9 * scores["f1"], 6), "rejected": 0.08} for slug, scores in judged["per_tissue"].items()}
    return {
        "n_images": len(table["tissue"]), **{by: scored(table, by) for by in BY},
        "open_set": {**open_set, "rejected": 0.08, "per_tissue": tissues},
        "features": _fidelity(0.17 * distance, len(table["tissue"]), 1024),
        "structure": _fidelity(0.06 * distance, len(table["tissue"]), 45),
        "orientation": _compared(0.31, 0.35 * distance) | {"expected": 0.083},
        "nuclei": _compared(24.2, 0.21 * distance) | {"expected": 0.079}, "colour_spread": _compared(12.3, 1.4 * distance),
        "two_sample_auc": {
            name: {"auc": round(0.5 + value, 4), "low": round(0.46 + value, 4), "high": round(min(1.0, 0.54 + value), 4)}
            for name, value in (("spectrum", min(0.46, 0.3 * distance)), ("structure", min(0.46, 0.2 * distance)))
        },
        "copying": {"pixels": _copies(0.0444, len(table["tissue"])), "structure": _copies(0.0056, len(table["tissue"]))},
    }  # fmt: skip


def scored(table: dict, by: str) -> dict:
    """Scores one set by one observer, with intervals of a fixed width."""
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


def _predictions(rng: np.random.Generator, slots: int, worse: float) -> dict[str, np.ndarray]:
    tissue, slot = np.repeat(np.arange(N), slots), np.tile(np.arange(slots), N)
    table = {"tissue": tissue, "slot": slot}
    for by, factor in zip(BY, (0.7, 1.0, 2.0), strict=True):
        wrong = rng.random(len(tissue)) < np.take(HARD, tissue) * factor * worse
        table[by] = np.where(wrong, (tissue + rng.integers(1, N, len(tissue))) % N, tissue)
    return table


_INTERVALS = {"kernel": "kernel_distance", "precision": "precision", "density": "density", "frechet": "frechet_distance"}


def _fidelity(distance: float, images: int, dimensions: int) -> dict:
    """Fidelity in one feature space; the Fréchet distance only where there are more images than dimensions."""
    near = 1 / (1 + distance)
    means = {
        "kernel_distance": round(distance, 8), "precision": round(0.9 * near, 6), "recall": round(0.85 * near, 6),
        "density": round(1.1 * near, 6), "coverage": round(0.88 * near, 6),
    }  # fmt: skip
    scores = means | ({"frechet_distance": 60 * distance, "frechet_bias": 2.3} if images > dimensions else {})
    ends = {
        f"{name}_{end}": round(scores[key] * factor, 8)
        for name, key in _INTERVALS.items() if key in scores
        for end, factor in (("low", 0.9), ("high", 1.1))
    }  # fmt: skip
    few = {"frechet_distance": f"{images} images: at least {dimensions + 1} are needed"} if images <= dimensions else {}
    tissues = {
        slug: {"n_images": images // N, "n_reference": 250}
        | {name: round(min(1.2, value * (1 + HARD[i] / 6)), 6) for name, value in means.items() if i or name != "recall"}
        | ({} if i else {"undefined": {"recall": "3 images: at least 6 are needed"}})
        for i, slug in enumerate(SLUGS)
    }
    return {
        "n_images": images, "n_reference": 1800, "dimensions": dimensions, **scores, **ends, "mean_per_tissue": means,
        "per_tissue": tissues, "undefined": few,
    }  # fmt: skip


def _compared(real: float, distance: float) -> dict:
    """Means of a structure by tissue; `distance` is that of a tissue that is easy to draw."""
    apart = {slug: round(distance * (1 + hard), 4) for slug, hard in zip(SLUGS, HARD, strict=True)}
    rows = {slug: {"generated": round(real * (1 + d), 4), "real": real, "distance": d} for slug, d in apart.items()}
    return {"distance": round(float(np.mean(list(apart.values()))), 6), "per_tissue": rows}


def _copies(share: float, images: int) -> dict:
    ends = {"low": round(0.5 * share, 6), "high": round(min(1.0, 1.8 * share + 0.02), 6)}
    return {
        "share": share, **ends, "expected": 0.012, "p_more": 0.0031 if share > 0.03 else 0.774, "n_images": images, "n_val": 540
    }  # fmt: skip


def _agreement(both: int, expected: float, kappa: float) -> dict:
    return {
        "n_images": 180, "both_wrong": both, "expected_both_wrong": expected, "same_wrong_class": both // 2, "kappa": kappa
    }  # fmt: skip


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


_TRAINED = {"real": 0.83, "synthetic": 0.71, "real_and_synthetic": 0.861, "more_real": 0.88}


def _usefulness() -> dict:
    def trained(worse: float, detectable: float) -> dict:
        gains = {"gain": 0.031, "gain_of_more_real": 0.05}
        return {name: _useful(mean - worse) for name, mean in _TRAINED.items()} | {
            name: {"mean": mean, "std": 0.017, "low": mean - 0.008, "high": mean + 0.008, "detectable": detectable}
            for name, mean in gains.items()
        }

    return {
        "trained_on": "accepted", "repeats": {"network": 5, "probe": 20}, "steps": 120, "real_per_tissue": 10,
        "n_images": {"real": 90, "synthetic": 162, "real_and_synthetic": 252, "more_real": 252},
        "network": {"val": trained(0.0, 0.024), "test": trained(0.05, 0.0264)},
        "probe": {"val": trained(0.02, 0.011), "test": trained(0.07, 0.0122)},
    }  # fmt: skip


def _useful(mean: float) -> dict:
    rows = {slug: {"f1_mean": round(mean - HARD[i] / 3, 4), "f1_std": 0.021} for i, slug in enumerate(SLUGS)}
    return {
        "accuracy_mean": mean, "accuracy_std": 0.012, "macro_f1_mean": round(mean - 0.01, 4), "macro_f1_std": 0.013,
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
        "space": ["structure", "structure", "pixels"], "rank": [1, 2, 1],
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
    _write_curve(curves / "lora/plots/metrics/validation/loss.tsv", [0.1 + 0.2 / (i + 1) for i in range(14)], 50)
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


def _write_picture(path: Path, rng: np.random.Generator, width: int, height: int, blocks: tuple[str, ...] = ()) -> None:
    """Writes random squares, and the places of `blocks` of images as a contact sheet records them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    small = rng.integers(120, 255, (height // 26, width // 26, 3), np.uint8)
    boxes = [BoundingBox(title, 36 + 328 * i, 108, 296, 596, 100) for i, title in enumerate(blocks)]
    text = PngInfo()
    text.add_text(BLOCKS, json.dumps([asdict(box) for box in boxes]))
    Image.fromarray(small).resize((width, height), Image.Resampling.NEAREST).save(path, optimize=True, pnginfo=text)
