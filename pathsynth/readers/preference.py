"""The preference page: two images of the same tissue and slot by two generators, and which of them shows it better."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from pathsynth.core.errors import DataError
from pathsynth.readers import PACKAGE
from pathsynth.readers.blinding import blind_image, make_ids, seed_by_content
from pathsynth.readers.pool import Classes, Pool
from pathsynth.readers.study import Blinded, assemble
from pathsynth.report.pages import render
from pathsynth.synthesis.records import compute_pixels_sha256

QUESTION = "which of the two shows {} better?"


@dataclass(frozen=True)
class PreferenceDesign:
    """What a preference page shows.

    Attributes:
        per_tissue: slots of every tissue; each is shown once for every pair of sets.
        size: side of the shown images in pixels.
        seed: decides slots, order, sides and noise.
        tissues: indices of the classes that are shown.
    """

    per_tissue: int
    size: int
    seed: int
    tissues: Sequence[int]


@dataclass(frozen=True)
class _Pair:
    """Two images side by side, each with the name of its set."""

    tissue: int
    slot: int
    names: tuple[str, str]
    images: tuple[np.ndarray, np.ndarray]


def build_preference(sets: Mapping[str, Pool], classes: Classes, design: PreferenceDesign) -> Blinded:
    """Draws slots that all sets have, and shows them for every pair of sets, each set as often on the left as on the right.

    Args:
        sets: at least two sets by name, whose images have a "slot".
        classes: the classes of the data set.
        design: what is shown.

    Raises:
        DataError: there are fewer than two sets, too few slots that all sets have, or two sets have the same images.
    """
    if len(sets) < 2:
        raise DataError("preference", f"compares at least two sets, but {len(sets)} was given; pass NAME=PATH for each")
    pairs = _draw_pairs(sets, classes, design)
    _check_different(pairs)
    hashes = [compute_pixels_sha256(image) for pair in pairs for image in pair.images]
    order_seed, side_seed, noise_seed = seed_by_content(design.seed, hashes).spawn(3)
    sides = _balance_sides(pairs, np.random.default_rng(side_seed))
    noise, trials, entries, shown = np.random.default_rng(noise_seed), [], [], []
    order = np.random.default_rng(order_seed).permutation(len(pairs)).tolist()
    for name, index in zip(make_ids(len(order)), order, strict=True):
        pair, step = pairs[index], -1 if sides[index] else 1
        left, right = pair.names[::step]
        question = QUESTION.format(classes.names[pair.tissue])
        tissue = classes.slugs[pair.tissue]
        entries.append({"id": name, "tissue": tissue, "question": question, "left": left, "right": right, "slot": pair.slot})
        trials.append((name, [blind_image(image, design.size, classes.channels, noise) for image in pair.images[::step]]))
        shown.append({"question": question})
    return assemble("preference", classes, trials, entries, design.seed, len(trials), shown)


def render_preference(blinded: Blinded, classes: Classes, consent: Sequence[str] = ()) -> str:
    """Renders the page; `consent` is the group's own text, by paragraph."""
    count = len(blinded.page["trials"])
    return render("preference.html.j2", PACKAGE, data=blinded.page, consent=consent, count=count, stand_in=classes.stand_in)


def _rows_by_slot(pool: Pool) -> dict[tuple[int, int], int]:
    """The row of every label and slot."""
    return {(int(label), int(pool.describe(row)["slot"])): row for row, label in enumerate(pool.labels)}


def _draw_pairs(sets: Mapping[str, Pool], classes: Classes, design: PreferenceDesign) -> list[_Pair]:
    """Every two sets at every drawn slot, by tissue."""
    rows = {name: _rows_by_slot(pool) for name, pool in sets.items()}
    pairs = []
    for tissue, slots in _draw_slots(sets, rows, classes, design).items():
        for first, second in combinations(sets, 2):
            for slot in slots:
                left, right = (sets[name].image(rows[name][tissue, slot]) for name in (first, second))
                pairs.append(_Pair(tissue, slot, (first, second), (left, right)))
    return pairs


def _draw_slots(
    sets: Mapping[str, Pool], rows: Mapping[str, dict], classes: Classes, design: PreferenceDesign
) -> dict[int, list[int]]:
    """Draws slots that every set has, by tissue."""
    common = set.intersection(*(set(found) for found in rows.values()))
    rng, drawn, short = np.random.default_rng(design.seed), {}, []
    for tissue in design.tissues:
        slots = sorted(slot for label, slot in common if label == tissue)
        if len(slots) < design.per_tissue:
            short.append(f"{classes.slugs[tissue]} {len(slots)}")
        drawn[tissue] = rng.permutation(slots).tolist()[: design.per_tissue]
    if short:
        remedy = "Lower -n, name other tissues with --tissue, or compare sets of more images"
        raise DataError(
            ", ".join(sets), f"too few slots in common: {', '.join(short)}; {design.per_tissue} are needed. {remedy}"
        )
    return drawn


def _check_different(pairs: Sequence[_Pair]) -> None:
    """Refuses two sets with the same images; single images may agree, such as the accepted ones of a first attempt."""
    different = {pair.names: False for pair in pairs}
    for pair in pairs:
        different[pair.names] |= not np.array_equal(*pair.images)
    if same := next((names for names, differ in different.items() if not differ), None):
        raise DataError(
            ", ".join(same), "have the same images in all drawn slots, so there is nothing to prefer; pass another set"
        )


def _balance_sides(pairs: Sequence[_Pair], rng: np.random.Generator) -> np.ndarray:
    """Draws which pairs change sides, bool (n,): half of those of the same two sets, up to one."""
    groups: dict[tuple[str, str], list[int]] = {}
    for index, pair in enumerate(pairs):
        groups.setdefault(pair.names, []).append(index)
    sides = np.zeros(len(pairs), bool)
    for indices in groups.values():
        # an odd one out changes sides by chance
        swapped = (np.arange(len(indices)) + rng.integers(2)) % 2 == 1
        sides[indices] = rng.permutation(swapped)
    return sides
