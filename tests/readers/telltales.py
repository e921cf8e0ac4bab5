"""Tries to tell real from synthetic images of a page by anything but the picture."""

from __future__ import annotations

import base64
import io
import struct
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

# Area under the ROC curve from which on something counts as a telltale. Of 60 images, chance gives less in 999 of 1 000 cases.
TELLTALE_AUC = 0.75


def find_telltales(page: Mapping, origins: Mapping[str, str]) -> set[str]:
    """Returns what distinguishes real from synthetic images of a page, given the origin of every id."""
    pngs = [base64.b64decode(trial["images"][0]) for trial in page["trials"]]
    synthetic = np.array([origins[trial["id"]] == "synthetic" for trial in page["trials"]])
    found = {"keys"} if any(set(trial) != {"id", "images"} for trial in page["trials"]) else set()
    if len({describe_structure(png) for png in pngs}) > 1:
        found.add("structure")
    if _is_telltale(np.array([[float(len(trial["images"][0]))] for trial in page["trials"]]), synthetic):
        found.add("length")
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(png)).convert("RGB")) for png in pngs])
    for name, bits in (("lowest bit", 1), ("two lowest bits", 2)):
        if _is_telltale(np.stack([low_bits(image, bits) for image in pixels]), synthetic):
            found.add(name)
    ids = np.array([[int(trial["id"])] for trial in page["trials"]], float)
    for name, values in (("id", ids), ("order", np.arange(len(synthetic), dtype=float)[:, None])):
        if _is_telltale(values, synthetic) or _is_telltale(values % 2, synthetic):
            found.add(name)
    return found


def describe_structure(png: bytes) -> tuple:
    """Names and lengths of the chunks, the header, and the flags and block types of the compressed data."""
    chunks, start = [], 8
    while start < len(png):
        length, name = struct.unpack(">I4s", png[start : start + 8])
        chunks.append((name, png[start + 8 : start + 8 + length]))
        start += length + 12
    data = b"".join(content for name, content in chunks if name == b"IDAT")
    return (tuple((name, len(content)) for name, content in chunks), chunks[0][1], data[:2], _block_types(data))


def _block_types(data: bytes) -> tuple:
    """Types and lengths of stored deflate blocks, up to the first block that is compressed."""
    blocks, start = [], 2
    while start < len(data) - 4:
        kind = data[start] >> 1 & 3
        if kind:
            return (*blocks, kind)
        (length,) = struct.unpack("<H", data[start + 1 : start + 3])
        blocks.append((kind, length))
        if data[start] & 1:
            break
        start += length + 5
    return tuple(blocks)


def low_bits(image: np.ndarray, bits: int) -> np.ndarray:
    """Shares of the values of the lowest bits in every channel, and how often neighbours agree in them."""
    low = image & (2**bits - 1)
    shares = [np.bincount(low[..., channel].ravel(), minlength=2**bits) / low[..., channel].size for channel in range(3)]
    agree = [(low[1:] == low[:-1]).mean(), (low[:, 1:] == low[:, :-1]).mean(), (low[..., 0] == low[..., 1]).mean()]
    return np.concatenate([*shares, agree])


def measure_auc(features: np.ndarray, synthetic: np.ndarray) -> float:
    """Area under the ROC curve of a classifier with cross-validation, features (n, m), labels bool (n,)."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    return float(roc_auc_score(synthetic, cross_val_predict(model, features, synthetic, cv=folds, method="decision_function")))


def _is_telltale(features: np.ndarray, synthetic: np.ndarray) -> bool:
    return bool(np.ptp(features, axis=0).any()) and measure_auc(features, synthetic) > TELLTALE_AUC


def origins_of(entries: Sequence[Mapping]) -> dict[str, str]:
    """The origin of every id, from the trials of a key."""
    return {entry["id"]: entry["origin"] for entry in entries}
