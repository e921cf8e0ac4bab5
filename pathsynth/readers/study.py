"""The blinded study: real and synthetic images mixed on one page, and the key that tells them apart."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pathsynth import __version__
from pathsynth.core.errors import DataError
from pathsynth.readers import PACKAGE
from pathsynth.readers.answers import KEY_FORMAT, VERSION
from pathsynth.readers.blinding import blind_image, compute_checksum, make_ids, seed_by_content
from pathsynth.readers.pool import Classes, Pool, draw_rows
from pathsynth.report.pages import render
from pathsynth.synthesis.records import compute_pixels_sha256

CONFIDENCES = ("guessing", "unsure", "fairly sure", "sure", "certain")
# Class probabilities, float (n, classes), of images uint8 (n, H, H, 3).
Classify = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class StudyDesign:
    """What a study shows.

    Attributes:
        per_tissue: images of every tissue.
        share: share of synthetic ones among them, in [0, 1]; 0 or 1 shows images of one origin only.
        repeats: number of trials that are shown a second time, under other ids.
        size: side of the shown images in pixels.
        seed: decides which images are drawn, their order and their noise; whoever knows it and has the images knows the key.
        tissues: indices of the classes that are shown; readers choose among all classes.
    """

    per_tissue: int
    share: float
    repeats: int
    size: int
    seed: int
    tissues: Sequence[int]

    @property
    def synthetic(self) -> int:
        """Synthetic images of every tissue; halves are rounded up."""
        return int(self.per_tissue * self.share + 0.5)


@dataclass(frozen=True)
class Blinded:
    """A page's data, which a reader may see, and its key, which a reader may not."""

    page: dict[str, Any]
    key: dict[str, Any]


def build_study(
    real: Pool, synthetic: Pool, classes: Classes, design: StudyDesign, observers: Mapping[str, Classify] | None = None
) -> Blinded:
    """Draws the images of a study, mixes and encodes them.

    Args:
        real, synthetic: what the images are drawn from.
        classes: the classes of the data set.
        design: what is shown.
        observers: "gate" and "judge", whose predictions the key states; those that are missing are stated as null.

    Raises:
        DataError: a tissue has too few different images, the share rounds to none or all of them, or there are fewer trials to
            repeat than wanted.
    """
    if 0 < design.share < 1 and design.synthetic in (0, design.per_tissue):
        images = "1 image" if design.per_tissue == 1 else f"{design.per_tissue} images"
        raise DataError("--share", f"{design.share:g} of {images} leaves no real or no synthetic one; raise -n")
    items = _draw_items(real, synthetic, classes, design, observers or {})
    if design.repeats > (limit := (len(items) + 1) // 2):
        raise DataError("--repeats", f"{design.repeats} of {len(items)} images; the limit is {limit}, a half")
    order_seed, noise_seed = seed_by_content(design.seed, [item["image"] for item, _ in items]).spawn(2)
    order, first_block = order_with_repeats(len(items), design.repeats, np.random.default_rng(order_seed))
    noise = np.random.default_rng(noise_seed)
    trials, entries, first_ids = [], [], dict[int, str]()
    for name, index in zip(make_ids(len(order)), order, strict=True):
        item, image = items[index]
        repeated = {"repeats": first_ids[index]} if index in first_ids else {}
        first_ids.setdefault(index, name)
        entries.append({"id": name, **item, **repeated})
        trials.append((name, [blind_image(image, design.size, classes.channels, noise)]))
    return assemble("study", classes, trials, entries, design.seed, first_block)


def assemble(
    kind: str,
    classes: Classes,
    trials: Sequence[tuple[str, Sequence[bytes]]],
    entries: Sequence[dict[str, Any]],
    seed: int,
    first_block: int,
    shown: Sequence[Mapping[str, Any]] | None = None,
) -> Blinded:
    """Builds the data of a page and its key.

    Args:
        kind: "study" or "preference".
        classes: the classes of the data set.
        trials: id and PNG files of every trial.
        entries: the key's entry of every trial.
        seed: the seed, which only the key states.
        first_block: the page shuffles this many first trials and the others, separately, for each reader.
        shown: what else the page shows of every trial.
    """
    checksum = compute_checksum(kind, classes.slugs, trials)
    shown = shown or [{}] * len(trials)
    page = {
        "kind": kind,
        "study": checksum,
        "first_block": first_block,
        "trials": [
            {"id": name, "images": [b64encode(png).decode("ascii") for png in images], **more}
            for (name, images), more in zip(trials, shown, strict=True)
        ],
    }
    key = {
        "format": KEY_FORMAT,
        "version": VERSION,
        "kind": kind,
        "study": checksum,
        "created_with": __version__,
        "classes": list(classes.slugs),
        "stand_in": classes.stand_in,
        "seed": seed,
        "trials": list(entries),
    }
    return Blinded(page, key)


def order_with_repeats(count: int, repeats: int, rng: np.random.Generator) -> tuple[list[int], int]:
    """Draws an order of `count` items in two blocks; items of the first may come a second time in the second.

    Returns:
        Indices, `count` + `repeats` of them, and the length of the first block.
    """
    order = rng.permutation(count)
    first, second = order[: (count + 1) // 2], order[(count + 1) // 2 :]
    second = rng.permutation(np.concatenate([second, rng.choice(first, repeats, replace=False)]))
    return [*first.tolist(), *second.tolist()], len(first)


def render_study(blinded: Blinded, classes: Classes, consent: Sequence[str] = ()) -> str:
    """Renders the page; `consent` is the group's own text, by paragraph."""
    choices = list(zip(classes.slugs, classes.names, strict=True))
    count = len(blinded.page["trials"])
    values = {"choices": choices, "confidences": CONFIDENCES, "consent": consent, "count": count}
    return render("study.html.j2", PACKAGE, data=blinded.page, stand_in=classes.stand_in, **values)


def _draw_items(
    real: Pool, synthetic: Pool, classes: Classes, design: StudyDesign, observers: Mapping[str, Classify]
) -> list[tuple[dict[str, Any], np.ndarray]]:
    """Draws images of all tissues, each with its entry of the key but for the id."""
    rng, used, items = np.random.default_rng(design.seed), set[str](), []
    wanted = (("synthetic", synthetic, design.synthetic), ("real", real, design.per_tissue - design.synthetic))
    for origin, pool, count in wanted:
        rows = {label: draw_rows(pool, label, count, rng, used) for label in design.tissues}
        _check_counts(pool, origin, count, {classes.slugs[label]: len(found) for label, found in rows.items()})
        labelled = [(label, row) for label, found in rows.items() for row in found]
        images = [pool.image(row) for _, row in labelled]
        opinions = {role: _predict(observers.get(role), images, classes.slugs) for role in ("gate", "judge")}
        for number, ((label, row), image) in enumerate(zip(labelled, images, strict=True)):
            item = {
                "tissue": classes.slugs[label],
                "origin": origin,
                "image": compute_pixels_sha256(image),
                "source": dict(pool.describe(row)),
                **{role: found[number] for role, found in opinions.items()},
            }
            items.append((item, image))
    return items


def _check_counts(pool: Pool, origin: str, count: int, found: Mapping[str, int]) -> None:
    """Raises DataError if a tissue has fewer images than wanted."""
    if short := {slug: number for slug, number in found.items() if number < count}:
        counts = ", ".join(f"{slug} {number}" for slug, number in short.items())
        others = [slug for slug in found if slug not in short]
        remedy = "Lower -n, change --share" + (", or name the other tissues with --tissue" if others else "")
        raise DataError(pool.name, f"too few different {origin} images: {counts}; {count} of each are needed. {remedy}")


def _predict(classify: Classify | None, images: list[np.ndarray], slugs: Sequence[str]) -> list[dict[str, Any] | None]:
    """The predicted slug and its probability for every image."""
    if classify is None or not images:
        return [None] * len(images)
    probabilities = classify(np.stack(images))
    return [{"predicted": slugs[int(row.argmax())], "confidence": round(float(row.max()), 4)} for row in probabilities]
