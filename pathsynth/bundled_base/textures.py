"""Captioned procedural textures: the whole visual world that the bundled base learns from.

A texture is a ground (one colour, two mixed colours, a slope) with up to two layers of simple things on it (dots, cells,
nets, strands, ...). The caption says what is there in a small, composable vocabulary. No tissue is drawn here and no
tissue is named: the base knows shapes and colours, and learns tissues through LoRA alone.

A share of the textures belongs to made-up `kinds`: each has one invented name and one fixed recipe. They are how the
text encoder learns to tell words that it has never read apart, by their letters.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from pathsynth.data import labels
from pathsynth.sources import drawing

COLOURS: dict[str, tuple[float, float, float]] = {
    "white": (0.96, 0.95, 0.96),
    "grey": (0.62, 0.61, 0.64),
    "black": (0.10, 0.09, 0.12),
    "pink": (0.91, 0.66, 0.78),
    "rose": (0.86, 0.50, 0.63),
    "red": (0.80, 0.22, 0.25),
    "magenta": (0.74, 0.30, 0.58),
    "purple": (0.52, 0.32, 0.62),
    "violet": (0.42, 0.27, 0.58),
    "indigo": (0.28, 0.20, 0.48),
    "lilac": (0.78, 0.70, 0.86),
    "lavender": (0.86, 0.82, 0.93),
    "blue": (0.32, 0.42, 0.76),
    "navy": (0.16, 0.17, 0.40),
    "sky": (0.66, 0.80, 0.92),
    "teal": (0.24, 0.55, 0.58),
    "green": (0.36, 0.62, 0.36),
    "yellow": (0.92, 0.84, 0.42),
    "cream": (0.95, 0.91, 0.84),
    "orange": (0.90, 0.58, 0.30),
    "brown": (0.50, 0.34, 0.26),
    "beige": (0.85, 0.77, 0.69),
}
# Half of all colours come from this family: a base that has seen little pink and purple would spend a LoRA on hue.
DYES = ("white", "pink", "rose", "magenta", "purple", "violet", "indigo", "lilac", "lavender", "navy", "cream")
SHADES = {"pale": 0.35, "": 0.0, "dark": -0.3}
AMOUNTS = {"a few": 0.3, "some": 0.55, "many": 0.85, "crowded": 1.0}
SIZES = {"tiny": 0.055, "small": 0.075, "medium": 0.11, "large": 0.17, "huge": 0.25}
GROUNDS = ("plain", "mottled", "cloudy", "fading", "streaming")
FRAMES = (
    "{}",
    "a picture of {}",
    "an image of {}",
    "a photograph of an area with {}",
    "a microscope image of {}",
    "a histopathological image of {}",
    "a histopathological image of an area with {}",
)
SYLLABLES = [
    c + v
    for c in ("b", "br", "c", "d", "f", "g", "gl", "k", "l", "m", "n", "p", "r", "s", "st", "t", "v", "z")
    for v in "aeiou"
]
ENDINGS = ("", "n", "s", "x", "m", "l", "ric", "tium", "lar", "phil", "ste", "coma", "nous", "va")


@dataclass(frozen=True)
class Layer:
    """One kind of thing on the ground; the words are keys of the tables above."""

    thing: str
    amount: str
    size: str
    shade: str
    colour: str


@dataclass(frozen=True)
class Recipe:
    """All that a caption can say about a texture."""

    ground: str
    shade: str
    colour: str
    second_colour: str
    layers: tuple[Layer, ...]


@dataclass(frozen=True)
class _Pen:
    """What a layer is drawn with: place, scale in pixels, colours."""

    rng: np.random.Generator
    canvas: drawing.Canvas
    size: float
    amount: float
    colour: np.ndarray
    ground: np.ndarray
    angle: float

    def tint(self, spread: float = 0.05) -> np.ndarray:
        return np.clip(self.colour + self.rng.normal(0, spread) + self.rng.normal(0, spread / 3, 3), 0, 1)

    def places(self, spacing: float) -> np.ndarray:
        """Points for things `spacing` pixels apart, thinned to the amount; crowded ones keep them all."""
        points = drawing.scatter(self.rng, self.canvas.size, spacing, margin=self.size, limit=220)
        return points[: max(2, round(len(points) * self.amount))]


def _dots(pen: _Pen) -> None:
    for x, y in pen.places(2.15 * pen.size):
        pen.canvas.polygon(drawing.ellipse(x, y, pen.size, pen.size * pen.rng.uniform(0.85, 1), corners=14), pen.tint())


def _grains(pen: _Pen) -> None:
    for x, y in pen.places(2.2 * pen.size):
        turn = pen.rng.uniform(0, np.pi)
        pen.canvas.polygon(drawing.ellipse(x, y, 1.35 * pen.size, 0.65 * pen.size, turn, corners=14), pen.tint())


def _spindles(pen: _Pen) -> None:
    for x, y in pen.places(3.2 * pen.size):
        turn = pen.angle + pen.rng.normal(0, 0.12)
        pen.canvas.polygon(drawing.ellipse(x, y, 2.1 * pen.size, 0.6 * pen.size, turn, corners=14), pen.tint())


def _cells(pen: _Pen) -> None:
    edge, heart = pen.tint(), pen.tint() * 0.55
    for x, y in pen.places(2.1 * pen.size):
        outline = drawing.blob(pen.rng, x, y, pen.size, 0.15, corners=16)
        pen.canvas.polygon(outline, drawing.mix(edge, (1, 1, 1), 0.45))
        pen.canvas.outline(outline, max(1.2, 0.22 * pen.size), edge)
        shift = pen.rng.normal(0, 0.15 * pen.size, 2)
        pen.canvas.polygon(drawing.ellipse(x + shift[0], y + shift[1], 0.42 * pen.size, 0.42 * pen.size, corners=12), heart)


def _rings(pen: _Pen) -> None:
    for x, y in pen.places(2.4 * pen.size):
        pen.canvas.outline(drawing.blob(pen.rng, x, y, pen.size, 0.15), max(1.6, 0.35 * pen.size), pen.tint())


def _holes(pen: _Pen) -> None:
    bright = drawing.mix(pen.colour, (1, 1, 1), 0.75)
    for x, y in pen.places(2.3 * pen.size):
        pen.canvas.polygon(
            drawing.blob(pen.rng, x, y, pen.size, pen.rng.uniform(0.1, 0.4)), np.clip(bright + pen.rng.normal(0, 0.02), 0, 1)
        )


def _patches(pen: _Pen) -> None:
    for x, y in pen.places(2.0 * pen.size):
        pen.canvas.polygon(drawing.blob(pen.rng, x, y, 1.2 * pen.size, 0.8), pen.tint(0.07))


def _crumbs(pen: _Pen) -> None:
    for x, y in pen.places(1.5 * pen.size):
        corners = int(pen.rng.integers(4, 7))
        points = drawing.blob(pen.rng, x, y, pen.size * pen.rng.uniform(0.35, 1.1), 1.0, corners=corners)
        pen.canvas.polygon(points, pen.tint(0.12))


def _wreaths(pen: _Pen) -> None:
    """Rings made of dots around a pale middle."""
    ring, dot = 1.5 * pen.size, max(2.0, 0.42 * pen.size)
    for x, y in pen.places(2.0 * (ring + dot)):
        outline = drawing.blob(pen.rng, x, y, ring, pen.rng.uniform(0.05, 0.25), corners=max(7, round(2.6 * ring / dot)))
        pen.canvas.polygon(outline, drawing.mix(pen.colour, (1, 1, 1), 0.8))
        for u, v in outline:
            pen.canvas.polygon(drawing.ellipse(u, v, dot, 0.8 * dot, pen.rng.uniform(0, np.pi), corners=10), pen.tint())


def _knots(pen: _Pen) -> None:
    """Ragged clumps of dots with a crooked gap, unlike the even wreaths."""
    for x, y in pen.places(2.6 * pen.size):
        outline = drawing.blob(pen.rng, x, y, 1.4 * pen.size, 0.7)
        pen.canvas.polygon(outline, drawing.mix(pen.colour, pen.ground, 0.4))
        dots = pen.rng.normal(0, 0.75 * pen.size, (9, 2)) + np.array((x, y))
        for u, v in dots:
            radius = pen.size * pen.rng.uniform(0.22, 0.42)
            pen.canvas.polygon(drawing.blob(pen.rng, u, v, radius, 0.3, corners=10), pen.tint(0.07))
        slit = drawing.ellipse(x, y, 0.9 * pen.size, 0.3 * pen.size, pen.rng.uniform(0, np.pi), corners=12)
        pen.canvas.polygon(slit, drawing.mix(pen.colour, (1, 1, 1), 0.8))


def _strands(pen: _Pen, sway: float, gap: float, width: float, alike: float) -> None:
    reach, step = pen.canvas.size * 1.5, pen.size * gap / (0.4 + 0.6 * pen.amount)
    middle, (cos, sin) = pen.canvas.size / 2, (np.cos(pen.angle), np.sin(pen.angle))
    period = pen.canvas.size * pen.rng.uniform(0.3, 0.6)
    for offset in np.arange(-reach / 2, reach / 2, step):
        offset += pen.rng.normal(0, 0.15 * step)
        points = drawing.wave(
            pen.rng,
            middle - offset * sin,
            middle + offset * cos,
            pen.angle + pen.rng.normal(0, alike),
            reach,
            sway * pen.size,
            period,
        )
        pen.canvas.line(points, max(1.5, width * pen.size * pen.rng.uniform(0.7, 1.3)), pen.tint())


def _fibres(pen: _Pen) -> None:
    _strands(pen, sway=0.05, gap=1.6, width=0.8, alike=0.02)


def _waves(pen: _Pen) -> None:
    _strands(pen, sway=0.8, gap=1.8, width=0.7, alike=0.12)


def _threads(pen: _Pen) -> None:
    """Crooked lines in all directions."""
    for x, y in pen.places(1.8 * pen.size):
        points = drawing.wave(pen.rng, x, y, pen.rng.uniform(0, np.pi), 7 * pen.size, 0.6 * pen.size, 5 * pen.size)
        pen.canvas.line(points, max(1.3, 0.35 * pen.size), pen.tint())


def _net(pen: _Pen) -> None:
    """Walls between cells of a Voronoi diagram, found on the pixel grid."""
    side = pen.canvas.size
    points = drawing.scatter(pen.rng, side, 1.9 * pen.size, margin=pen.size, limit=120)
    grid = np.stack(np.meshgrid(np.arange(side) + 0.5, np.arange(side) + 0.5), axis=-1)
    gaps = np.sqrt(((grid[:, :, None] - points) ** 2).sum(-1))
    near = np.partition(gaps, 1, axis=-1)[..., :2]
    wall = np.clip(1.5 + (0.12 + 0.12 * pen.amount) * pen.size - (near[..., 1] - near[..., 0]), 0, 1)
    pen.canvas.paint(pen.tint(), wall)


THINGS: dict[str, Callable[[_Pen], None]] = {
    "dots": _dots,
    "grains": _grains,
    "spindles": _spindles,
    "cells": _cells,
    "rings": _rings,
    "holes": _holes,
    "patches": _patches,
    "crumbs": _crumbs,
    "wreaths": _wreaths,
    "knots": _knots,
    "fibres": _fibres,
    "waves": _waves,
    "threads": _threads,
    "net": _net,
}
SYNONYMS = {
    "dots": ("dots", "round dots", "spots", "round nuclei"),
    "grains": ("grains", "oval grains", "oval nuclei"),
    "spindles": ("spindles", "long spindles", "spindle nuclei", "elongated nuclei"),
    "cells": ("cells", "cells with dark middles"),
    "rings": ("rings", "hoops", "round rings"),
    "holes": ("holes", "bubbles", "droplets", "gaps"),
    "patches": ("patches", "blotches", "ragged patches"),
    "crumbs": ("crumbs", "broken crumbs", "fragments", "shards"),
    "wreaths": ("wreaths", "rings of nuclei", "round glands with pale lumen", "rings of dots"),
    "knots": ("knots", "ragged clumps of nuclei", "irregular glands", "crowded clumps"),
    "fibres": ("fibres", "straight fibres", "parallel fibres", "stripes"),
    "waves": ("waves", "wavy fibres", "wavy lines", "ripples"),
    "threads": ("threads", "crooked threads", "tangled threads"),
    "net": ("net", "net of thin walls", "mesh of membranes", "honeycomb"),
}
LINES = frozenset({"fibres", "waves", "spindles"})


def draw_recipe(rng: np.random.Generator) -> Recipe:
    """Picks a random recipe; half of the colours are dyes, see `DYES`."""
    count = int(rng.choice([0, 1, 2], p=[0.06, 0.5, 0.44]))
    layers = tuple(
        Layer(_pick(rng, THINGS), _pick(rng, AMOUNTS), _pick(rng, SIZES), _pick(rng, SHADES), _colour(rng))
        for _ in range(count)
    )
    return Recipe(_pick(rng, GROUNDS), _pick(rng, SHADES), _colour(rng), _colour(rng), layers)


def render(recipe: Recipe, rng: np.random.Generator, size: int) -> np.ndarray:
    """Draws one texture; the recipe leaves place, turn, jitter of colour and scale to `rng`.

    Returns:
        uint8 (size, size, 3).
    """
    ground = _shaded(rng, recipe.shade, recipe.colour)
    second = drawing.mix(ground, _shaded(rng, recipe.shade, recipe.second_colour), 0.7)
    angle = rng.uniform(0, np.pi)
    canvas = drawing.Canvas(drawing.mix(ground, second, _share(recipe.ground, rng, size, angle)), size)
    for layer in recipe.layers:
        radius = size * SIZES[layer.size] * rng.uniform(0.85, 1.15) / 2
        # things under two pixels across would be noise to a VAE that halves the picture twice
        pen = _Pen(rng, canvas, max(1.6, radius), AMOUNTS[layer.amount], _shaded(rng, layer.shade, layer.colour), ground, angle)
        THINGS[layer.thing](pen)
    image = canvas.image() * rng.uniform(0.92, 1.06) + rng.normal(0, 0.01, (size, size, 1)).astype(np.float32)
    return drawing.to_uint8(image)


def caption(recipe: Recipe, rng: np.random.Generator) -> str:
    """Says what the recipe draws, in one of many wordings; now and then a detail is left out."""
    on = f"on {_ground_words(recipe, rng)}" if rng.random() < 0.9 else ""
    parts = [_layer_words(layer, rng) for layer in recipe.layers]
    if len(parts) == 2 and rng.random() < 0.12:
        parts = parts[:1]
    text = " and ".join(parts) or "nothing"
    text = f"{text} {on}".strip() if rng.random() < 0.6 or not on else f"{on[3:]}, {text}"
    return _pick(rng, FRAMES).format(text)


@dataclass(frozen=True)
class Kind:
    """An invented name and the recipe that it stands for."""

    name: str
    recipe: Recipe


def invent_kinds(seed: int, count: int) -> list[Kind]:
    """Invents `count` kinds with different names, none of them a word of a tissue's; the same seed gives the same kinds."""
    reserved = {word for label in labels.PATHMNIST for word in re.findall("[a-z]+", label)}
    rng = np.random.default_rng([seed, 1])
    kinds: dict[str, Kind] = {}
    while len(kinds) < count:
        name = " ".join(_invent_word(rng) for _ in range(int(rng.choice([1, 2, 3], p=[0.5, 0.35, 0.15]))))
        recipe = draw_recipe(rng)
        if recipe.layers and not reserved & set(name.split()):
            kinds.setdefault(name, Kind(name, recipe))
    return list(kinds.values())


def sample(seed: int, index: int, size: int, kinds: list[Kind], kind_share: float) -> tuple[np.ndarray, str]:
    """Texture number `index` of the endless set that `seed` stands for.

    Returns:
        The picture, uint8 (size, size, 3), and its caption.
    """
    rng = np.random.default_rng([seed, 2, index])
    if rng.random() < kind_share:
        kind = kinds[int(rng.integers(len(kinds)))]
        # the size word may differ by one step, so that a name means a look and not one picture
        return render(_loosened(kind.recipe, rng), rng, size), _pick(rng, FRAMES).format(kind.name)
    recipe = draw_recipe(rng)
    return render(recipe, rng, size), caption(recipe, rng)


def _loosened(recipe: Recipe, rng: np.random.Generator) -> Recipe:
    sizes = list(SIZES)
    steps = [int(np.clip(sizes.index(layer.size) + rng.integers(-1, 2), 0, len(sizes) - 1)) for layer in recipe.layers]
    return replace(recipe, layers=tuple(replace(layer, size=sizes[s]) for layer, s in zip(recipe.layers, steps, strict=True)))


def _layer_words(layer: Layer, rng: np.random.Generator) -> str:
    size = layer.size if rng.random() < 0.8 else ""
    colour = f"{layer.shade} {layer.colour}" if rng.random() < 0.9 else ""
    thing = _pick(rng, SYNONYMS[layer.thing])
    return " ".join(" ".join((layer.amount if rng.random() < 0.85 else "", size, colour, thing)).split())


def _ground_words(recipe: Recipe, rng: np.random.Generator) -> str:
    colours = f"{recipe.shade} {recipe.colour}"
    if recipe.ground != "plain" and rng.random() < 0.7:
        colours += f" and {recipe.second_colour}"
    return " ".join(f"{recipe.ground} {colours} {_pick(rng, ('', 'ground', 'area'))}".split())


def _share(ground: str, rng: np.random.Generator, size: int, angle: float) -> np.ndarray:
    """How much of the second colour stands where, float (size, size) in [0, 1]."""
    along = np.linspace(-1, 1, size, dtype=np.float32)
    x, y = np.meshgrid(along, along)
    turned = x * np.cos(angle) + y * np.sin(angle)
    across = y * np.cos(angle) - x * np.sin(angle)
    if ground == "plain":
        return 0.15 * drawing.noise_field(rng, size, 3)
    if ground == "fading":
        return np.clip(0.5 + 0.5 * turned, 0, 1)
    if ground == "streaming":
        bend = 0.5 * drawing.noise_field(rng, size, 2)
        return 0.5 + 0.5 * np.sin((across + bend) * rng.uniform(6, 11))
    return drawing.noise_field(rng, size, 9 if ground == "mottled" else 3)


def _shaded(rng: np.random.Generator, shade: str, colour: str) -> np.ndarray:
    amount = SHADES[shade]
    end = (1.0, 1.0, 1.0) if amount > 0 else (0.0, 0.0, 0.0)
    return np.clip(drawing.mix(COLOURS[colour], end, abs(amount)) + rng.normal(0, 0.03, 3), 0, 1)


def _colour(rng: np.random.Generator) -> str:
    return _pick(rng, DYES if rng.random() < 0.5 else COLOURS)


def _invent_word(rng: np.random.Generator) -> str:
    return "".join(_pick(rng, SYLLABLES) for _ in range(int(rng.integers(2, 5)))) + _pick(rng, ENDINGS)


def _pick(rng: np.random.Generator, options) -> str:
    options = tuple(options)
    return options[int(rng.integers(len(options)))]
