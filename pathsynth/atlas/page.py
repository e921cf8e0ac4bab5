"""The page of the atlas: one HTML file with its images, style and script."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from pathsynth.atlas.content import Accepted, AtlasContent
from pathsynth.atlas.encoding import choose_encoding, encode
from pathsynth.atlas.look_alikes import LookAlikes
from pathsynth.data.provenance import caption
from pathsynth.report import pages
from pathsynth.report.pages import Picture

PACKAGE = "pathsynth.atlas"
# Bytes of the page, and of its text: for each image, for each class, and for style and script.
MAX_BYTES, TILE_BYTES, CLASS_BYTES, FIXED_BYTES = 10_000_000, 700, 6_000, 80_000
# Images of each class beside a look-alike, and images shown before a section is unfolded.
PAIR_IMAGES, FOLDED = 6, 12

View = dict[str, Any]
Embed = Callable[[np.ndarray], Picture]


def render_atlas(content: AtlasContent) -> str:
    """Renders the page. Equal input gives equal text.

    Images are shown losslessly if the page stays below MAX_BYTES, and else compressed as far as needed.
    """
    images = _list_images(content)
    text = FIXED_BYTES + TILE_BYTES * len(images) + CLASS_BYTES * len(content.classes)
    encoding = choose_encoding(images, MAX_BYTES - text)
    embed = partial(encode, encoding=encoding)
    script = pages.render("atlas.js.j2", PACKAGE)
    return pages.render(
        "atlas.html.j2",
        PACKAGE,
        content=content,
        caption=caption(content.benchmark, content.stand_in),
        kind="synthetic phantom" if content.stand_in else "synthetic image",
        sections=_list_sections(content),
        classes=[_class_view(content, index, embed) for index in range(len(content.classes))],
        pairs=[_pair_view(content, number, pair, embed) for number, pair in enumerate(content.look_alikes, 1)],
        quiz_ready=sum(bool(one.accepted) for one in content.classes) > 1,
        encoding=encoding.describe(images[0].shape[1]) if images else "",
        folded=FOLDED,
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
    )


def _list_images(content: AtlasContent) -> list[np.ndarray]:
    """All images of the page; those of look-alikes stand on it twice."""
    images = [one.image for each in content.classes for one in each.accepted]
    images += [image for each in content.classes for image in each.real]
    for pair in content.look_alikes:
        for index in (pair.first, pair.second):
            images += [one.image for one in content.classes[index].accepted[:PAIR_IMAGES]]
    return images


def _list_sections(content: AtlasContent) -> list[dict[str, str]]:
    """Anchor and title of each section."""
    classes = [{"anchor": f"class-{index}", "title": one.label} for index, one in enumerate(content.classes)]
    return [
        {"anchor": "limits", "title": "What this atlas is not for"},
        *classes,
        {"anchor": "look-alikes", "title": "Look-alikes"},
        {"anchor": "quiz", "title": "Quiz"},
    ]


def _class_view(content: AtlasContent, index: int, embed: Embed) -> View:
    one = content.classes[index]
    return {
        "index": index,
        "label": one.label,
        "prompt": one.prompt,
        "description": one.description,
        "attempts": one.attempts,
        "n_accepted": one.n_accepted,
        "n_confirmed": one.n_confirmed,
        "tiles": [_tile(content, index, each, embed) for each in one.accepted],
        "real": [embed(image) for image in one.real],
        "pairs": [
            {"number": number, "other": content.classes[pair.second if pair.first == index else pair.first].label}
            for number, pair in enumerate(content.look_alikes, 1)
            if index in (pair.first, pair.second)
        ],
    }


def _tile(content: AtlasContent, index: int, image: Accepted, embed: Embed) -> View:
    """A picture and what its label says."""
    return {
        "picture": embed(image.image),
        "slot": image.slot,
        "attempt": image.attempt,
        "seed": image.seed,
        "confidence": image.confidence,
        # rounded down, so that 100 % means certainty
        "percent": int(100 * image.confidence),
        "judge": "" if image.judge == index else content.classes[image.judge].label,
    }


def _pair_view(content: AtlasContent, number: int, pair: LookAlikes, embed: Embed) -> View:
    sides = []
    for index in (pair.first, pair.second):
        one = content.classes[index]
        tiles = [_tile(content, index, each, embed) for each in one.accepted[:PAIR_IMAGES]]
        sides.append({"index": index, "label": one.label, "description": one.description, "tiles": tiles})
    return {"number": number, "share": pages.percent(pair.share), "sides": sides, "counts": pair.counts}
