"""A prepared data set of random images, for what takes as long whatever they show."""

from __future__ import annotations

import numpy as np

from benchmarks.pairs import Bench
from pathsynth.core.io import NpyWriter
from pathsynth.data.prepared import Prepared, open_prepared, write_prepared


def random_images(bench: Bench, count: int) -> Prepared:
    """Random images to train on, made at the first call, a piece at a time."""
    folder, dataset = bench.scratch / str(count), bench.params.benchmark.dataset
    if not folder.exists():
        splits = {}
        for split, number in {"train": count, "val": 9, "test": 9}.items():
            path, labels = bench.scratch / f"{count}-{split}.npy", (np.arange(number) % len(dataset.slugs)).astype(np.uint8)
            with NpyWriter(path, (number, dataset.image_size, dataset.image_size, 3), np.dtype(np.uint8)) as rows:
                rng = np.random.default_rng(0)
                for start in range(0, number, 500):
                    shape = (min(500, number - start), dataset.image_size, dataset.image_size, 3)
                    rows.add(rng.integers(0, 256, shape, np.uint8))
            splits[split] = (np.load(path, mmap_mode="r"), labels)
        write_prepared(folder, "bench", dataset.label_names, splits, {}, dataset.image_size)
    return open_prepared(folder)
