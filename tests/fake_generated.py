"""Generated images and a prepared data set that fit the run of `fake_results`, drawn as phantoms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from pathsynth.core.params import load_params
from pathsynth.data.archives import write_archive
from pathsynth.data.prepared import write_prepared
from pathsynth.data.settings import AnyDataset
from pathsynth.sources import phantom


def write_images(folder: Path) -> Path:
    """Adds data/prepared and data/generated to a run, and returns its folder.

    Accepted are the images that the run's accepted.csv lists; every third of them at the second attempt.
    """
    params = load_params(folder / "params.yaml")
    dataset = params.section("dataset", AnyDataset)
    table = pd.read_csv(folder / "plots" / "evaluation" / "accepted.csv")
    count, side = int(table.groupby("tissue").size().max()), dataset.image_size
    splits = {split: phantom.draw_split(8, 7, side, split) for split in ("train", "val", "test")}
    source = {"source": "phantom", "stand_in": True}
    write_prepared(folder / "data" / "prepared", params.benchmark_name, dataset.label_names, splits, source, side)
    images, labels = phantom.draw_split(count, 8, side, "train")
    order = np.argsort(labels, kind="stable")
    write_archive(folder / "data" / "generated" / "accepted.npz", images[order], labels[order])
    write_attempts(folder / "data" / "generated" / "attempts.csv", table)
    return folder


def write_attempts(path: Path, accepted: pd.DataFrame) -> None:
    """Writes the table of attempts: those accepted, and before every third a rejected one."""
    rows = []
    for number, (tissue, slot) in enumerate(zip(accepted["tissue"], accepted["slot"], strict=True)):
        retried = number % 3 == 0
        if retried:
            rows.append((tissue, slot, 0, 5_000_000_000_000_000_000 + 2 * number, "background", 0.6, 0))
        confidence = round(0.4 + 0.6 * (number % 18) / 18, 4)
        rows.append((tissue, slot, int(retried), 5_000_000_000_000_000_001 + 2 * number, tissue, confidence, 1))
    columns = ["tissue", "slot", "attempt", "seed", "predicted", "confidence", "accepted"]
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows, columns=columns).to_csv(path, index=False)
