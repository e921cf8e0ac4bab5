"""Captioned procedural textures, the training data of the bundled base.

A texture is a background (one colour, two mixed colours, or a gradient) with up to two layers of simple motifs (dots, fibres,
nets, ...), and its caption describes them in a small, composable vocabulary. All layers share a direction field, so that
spindles lie along fibres. Colours do not depend on motifs and contrast with the background, so that colour alone tells little.
No tissue is drawn or named: the base knows shapes and colours, and learns tissues only through a LoRA.

A fraction of the textures belongs to invented `kinds`, each with an invented name and a fixed recipe. They teach the text
encoder to distinguish unknown words by their letters.
"""

from __future__ import annotations

import itertools
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
# Most colours are from this family: with little pink and purple in the base, a LoRA would mostly learn hue.
DYES = ("white", "pink", "rose", "magenta", "purple", "violet", "indigo", "lilac", "lavender", "navy", "cream")
SHADES = {"pale": 0.35, "": 0.0, "dark": -0.3}
AMOUNTS = {"a few": 0.3, "some": 0.55, "many": 0.85, "crowded": 1.0}
SIZES = {"small": 0.075, "medium": 0.11, "large": 0.17, "huge": 0.25, "giant": 0.36}
# Smallest difference of a layer's colour from the background's, the mean over RGB in [0, 1], so that every layer is visible.
MIN_CONTRAST = 0.18
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
    """A layer of one motif on the background; its fields are keys of the tables above."""

    motif: str
    amount: str
    size: str
    shade: str
    colour: str


@dataclass(frozen=True)
class Recipe:
    """Everything that a caption can say about a texture."""

    ground: str
    shade: str
    colour: str
    second_colour: str
    layers: tuple[Layer, ...]


@dataclass(frozen=True)
class _Flow:
    """A direction field: parallel lines at an angle, all bent to the same wave; lengths in pixels."""

    middle: float
    angle: float
    sway: float
    period: float
    phase: float

    @classmethod
    def draw(cls, rng: np.random.Generator, size: int, bend: float) -> _Flow:
        """Draws a field; `bend` is the ratio of a wave's amplitude to its period, 0 for straight lines."""
        period = size * rng.uniform(0.4, 1.1)
        return cls(size / 2, rng.uniform(0, np.pi), bend * rng.uniform(0.6, 1.4) * period, period, rng.uniform(0, 2 * np.pi))

    def line(self, offset: float) -> np.ndarray:
        """The line at a distance from the middle, points (n, 2) across the whole canvas and beyond."""
        along = np.arange(-1.6 * self.middle, 1.6 * self.middle + 1, 1.5)
        across = offset + self.sway * np.sin(2 * np.pi * along / self.period + self.phase)
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        return np.stack([self.middle + along * cos - across * sin, self.middle + along * sin + across * cos], axis=1)

    def angle_at(self, x: float, y: float) -> float:
        """Direction at a point, in radians."""
        along = (x - self.middle) * np.cos(self.angle) + (y - self.middle) * np.sin(self.angle)
        slope = 2 * np.pi * self.sway / self.period * np.cos(2 * np.pi * along / self.period + self.phase)
        return self.angle + np.arctan(slope)

    def offsets(self, step: float) -> np.ndarray:
        """Distances from the middle of lines that cover the canvas, `step` apart."""
        reach = 1.5 * self.middle + self.sway
        return np.arange(-reach, reach, step)


@dataclass(frozen=True)
class _Pen:
    """State for drawing a layer: canvas, scale in pixels, colours, direction field."""

    rng: np.random.Generator
    canvas: drawing.Canvas
    size: float
    amount: float
    colour: np.ndarray
    ground: np.ndarray
    flow: _Flow

    def tint(self, spread: float = 0.05) -> np.ndarray:
        return np.clip(self.colour + self.rng.normal(0, spread) + self.rng.normal(0, spread / 3, 3), 0, 1)

    def places(self, spacing: float) -> np.ndarray:
        """Positions `spacing` pixels apart, thinned out to the amount."""
        points = drawing.scatter(self.rng, self.canvas.size, spacing, margin=self.size, limit=220)
        return points[: max(2, round(len(points) * self.amount))]


@dataclass(frozen=True)
class Motif:
    """A motif: how it is drawn, its names in captions, its sizes, and its weight among all motifs.

    A bed is drawn first, below other motifs. `bend` is that of the direction field.
    """

    draw: Callable[[_Pen], None]
    names: tuple[str, ...]
    sizes: tuple[str, ...]
    weight: float
    bed: bool
    bend: float


MOTIFS: dict[str, Motif] = {}


def _motif(name: str, *synonyms: str, sizes: str, weight: float = 1.0, bed: bool = False, bend: float = 0.0) -> Callable:
    """Registers a function that draws a motif.

    Each motif has two sizes, small enough to repeat within an image. More sizes would need more training images.
    Motifs with an arrangement have a higher weight, since it is harder to learn.
    """

    def register(draw: Callable[[_Pen], None]) -> Callable[[_Pen], None]:
        MOTIFS[name] = Motif(draw, (name, *synonyms), tuple(sizes.split()), weight, bed, bend)
        return draw

    return register


@_motif("dots", "round dots", "spots", "round nuclei", sizes="small medium", weight=2)
def _draw_dots(pen: _Pen) -> None:
    for x, y in pen.places(2.15 * pen.size):
        pen.canvas.polygon(drawing.ellipse(x, y, pen.size, pen.size * pen.rng.uniform(0.85, 1), corners=14), pen.tint())


@_motif("grains", "oval grains", "oval nuclei", sizes="small medium", weight=2)
def _draw_grains(pen: _Pen) -> None:
    for x, y in pen.places(2.2 * pen.size):
        angle = pen.rng.uniform(0, np.pi)
        pen.canvas.polygon(drawing.ellipse(x, y, 1.35 * pen.size, 0.65 * pen.size, angle, corners=14), pen.tint())


@_motif("spindles", "long spindles", "spindle nuclei", "elongated nuclei", sizes="small medium", weight=2)
def _draw_spindles(pen: _Pen) -> None:
    for x, y in pen.places(3.2 * pen.size):
        angle = pen.flow.angle_at(x, y) + pen.rng.normal(0, 0.08)
        pen.canvas.polygon(drawing.ellipse(x, y, 2.1 * pen.size, 0.6 * pen.size, angle, corners=14), pen.tint())


@_motif("cells", "cells with dark middles", sizes="large huge")
def _draw_cells(pen: _Pen) -> None:
    rim, nucleus = pen.tint(), pen.tint() * 0.55
    for x, y in pen.places(2.1 * pen.size):
        outline = drawing.blob(pen.rng, x, y, pen.size, 0.15, corners=16)
        pen.canvas.polygon(outline, drawing.mix(rim, (1, 1, 1), 0.45))
        pen.canvas.outline(outline, max(1.2, 0.22 * pen.size), rim)
        shift = pen.rng.normal(0, 0.15 * pen.size, 2)
        pen.canvas.polygon(drawing.ellipse(x + shift[0], y + shift[1], 0.42 * pen.size, 0.42 * pen.size, corners=12), nucleus)


@_motif("rings", "hoops", "round rings", sizes="medium large")
def _draw_rings(pen: _Pen) -> None:
    for x, y in pen.places(2.4 * pen.size):
        pen.canvas.outline(drawing.blob(pen.rng, x, y, pen.size, 0.15), max(1.6, 0.35 * pen.size), pen.tint())


@_motif("holes", "bubbles", "droplets", "gaps", sizes="large huge", weight=1.5)
def _draw_holes(pen: _Pen) -> None:
    bright = drawing.mix(pen.colour, (1, 1, 1), 0.75)
    for x, y in pen.places(2.3 * pen.size):
        pen.canvas.polygon(
            drawing.blob(pen.rng, x, y, pen.size, pen.rng.uniform(0.1, 0.4)), np.clip(bright + pen.rng.normal(0, 0.02), 0, 1)
        )


@_motif("patches", "blotches", "ragged patches", sizes="large huge", bed=True)
def _draw_patches(pen: _Pen) -> None:
    for x, y in pen.places(2.0 * pen.size):
        pen.canvas.polygon(drawing.blob(pen.rng, x, y, 1.2 * pen.size, 0.8), pen.tint(0.07))


@_motif("crumbs", "broken crumbs", "fragments", "shards", sizes="medium large", weight=1.5)
def _draw_crumbs(pen: _Pen) -> None:
    for x, y in pen.places(1.5 * pen.size):
        corners = int(pen.rng.integers(4, 7))
        points = drawing.blob(pen.rng, x, y, pen.size * pen.rng.uniform(0.35, 1.1), 1.0, corners=corners)
        pen.canvas.polygon(points, pen.tint(0.12))


@_motif("wreaths", "rings of nuclei", "round glands with pale lumen", "rings of dots", sizes="large huge", weight=3)
def _draw_wreaths(pen: _Pen) -> None:
    """Rings of dots around a pale belt and a paler centre."""
    ring, dot = 1.5 * pen.size, max(2.0, 0.35 * pen.size)
    for x, y in pen.places(2.0 * ring + 3.0 * dot):
        outline = drawing.blob(pen.rng, x, y, ring, pen.rng.uniform(0.0, 0.2), corners=max(7, round(2.6 * ring / dot)))
        pen.canvas.polygon(outline, drawing.mix(pen.colour, (1, 1, 1), 0.6))
        middle = np.array((x, y))
        pen.canvas.polygon(middle + pen.rng.uniform(0.4, 0.8) * (outline - middle), drawing.mix(pen.colour, (1, 1, 1), 0.85))
        for u, v in outline:
            pen.canvas.polygon(drawing.ellipse(u, v, dot, 0.8 * dot, pen.rng.uniform(0, np.pi), corners=10), pen.tint())


@_motif("knots", "ragged clumps of nuclei", "irregular glands", "crowded clumps", sizes="large huge")
def _draw_knots(pen: _Pen) -> None:
    """Irregular clumps of dots with a slit, unlike the regular wreaths."""
    for x, y in pen.places(2.6 * pen.size):
        outline = drawing.blob(pen.rng, x, y, 1.4 * pen.size, 0.7)
        pen.canvas.polygon(outline, drawing.mix(pen.colour, pen.ground, 0.4))
        dots = pen.rng.normal(0, 0.75 * pen.size, (9, 2)) + np.array((x, y))
        for u, v in dots:
            radius = pen.size * pen.rng.uniform(0.22, 0.42)
            pen.canvas.polygon(drawing.blob(pen.rng, u, v, radius, 0.3, corners=10), pen.tint(0.07))
        slit = drawing.ellipse(x, y, 0.9 * pen.size, 0.3 * pen.size, pen.rng.uniform(0, np.pi), corners=12)
        pen.canvas.polygon(slit, drawing.mix(pen.colour, (1, 1, 1), 0.8))


def _draw_strands(pen: _Pen, gap: float, width: float) -> None:
    step = pen.size * gap / (0.4 + 0.6 * pen.amount)
    for offset in pen.flow.offsets(step):
        points = pen.flow.line(offset + pen.rng.normal(0, 0.12 * step))
        pen.canvas.line(points, max(1.5, width * pen.size * pen.rng.uniform(0.75, 1.25)), pen.tint())


@_motif("fibres", "straight fibres", "parallel fibres", "stripes", sizes="medium large", weight=3, bed=True)
def _draw_fibres(pen: _Pen) -> None:
    _draw_strands(pen, gap=1.6, width=0.8)


@_motif("waves", "wavy fibres", "wavy lines", "ripples", sizes="medium large", weight=3, bed=True, bend=0.12)
def _draw_waves(pen: _Pen) -> None:
    _draw_strands(pen, gap=1.8, width=0.7)


@_motif("rows", "rows of dots", "lines of nuclei", "palisades", sizes="medium large", weight=1.5, bend=0.04)
def _draw_rows(pen: _Pen) -> None:
    """Dots side by side in rows, each long across its row."""
    step = pen.size * 3.4 / (0.4 + 0.6 * pen.amount)
    for offset in pen.flow.offsets(step):
        points = pen.flow.line(offset)
        # points lie 1.5 px apart along the row
        for x, y in points[:: max(1, round(1.35 * pen.size / 1.5))]:
            angle = pen.flow.angle_at(x, y) + np.pi / 2 + pen.rng.normal(0, 0.1)
            pen.canvas.polygon(drawing.ellipse(x, y, pen.size, 0.6 * pen.size, angle, corners=12), pen.tint())


@_motif("strata", "layers", "stacked layers", "layered bands", sizes="large huge", weight=1.5, bed=True, bend=0.06)
def _draw_strata(pen: _Pen) -> None:
    """Broad bands, each of another tone, with a line along every edge."""
    step = pen.size * 3.0 / (0.4 + 0.6 * pen.amount)
    offsets = pen.flow.offsets(step) + pen.rng.normal(0, 0.2 * step)
    edges = [pen.flow.line(offset) for offset in offsets]
    for lower, upper in itertools.pairwise(edges):
        pen.canvas.polygon(np.vstack([lower, upper[::-1]]), drawing.mix(pen.ground, pen.tint(), pen.rng.uniform(0.1, 0.8)))
    for edge in edges:
        pen.canvas.line(edge, max(1.3, 0.3 * pen.size), pen.tint() * 0.8)


@_motif("rims", "rims of nuclei", "edges lined with dots", "lined edges", sizes="medium large", weight=1.5)
def _draw_rims(pen: _Pen) -> None:
    """Wide pale gaps, whose edge is lined with dots in one or two layers."""
    for x, y in pen.places(7.0 * pen.size)[:3]:
        radius = 2.4 * pen.size
        outline = drawing.blob(pen.rng, x, y, radius, 0.5, corners=round(5.2 * radius / pen.size))
        pen.canvas.polygon(outline, drawing.mix(pen.colour, (1, 1, 1), 0.85))
        middle = np.array((x, y))
        for layer in range(int(pen.rng.integers(1, 3))):
            for u, v in middle + (outline - middle) * (1 + 0.6 * layer):
                angle = np.arctan2(v - y, u - x) + pen.rng.normal(0, 0.15)
                pen.canvas.polygon(drawing.ellipse(u, v, 0.8 * pen.size, 0.5 * pen.size, angle, corners=12), pen.tint())


@_motif("whorls", "concentric lines", "swirls", "whirls of fibres", sizes="medium large", weight=1.5, bed=True)
def _draw_whorls(pen: _Pen) -> None:
    """Concentric lines around one point."""
    side, step = pen.canvas.size, pen.size * 1.8 / (0.4 + 0.6 * pen.amount)
    x, y = pen.rng.uniform(-0.2, 1.2, 2) * side
    shape = drawing.blob(pen.rng, 0, 0, 1.0, 0.15, corners=48)
    for radius in np.arange(step, 1.7 * side, step):
        pen.canvas.outline(np.array((x, y)) + radius * shape, max(1.5, 0.7 * pen.size), pen.tint())


@_motif("threads", "crooked threads", "tangled threads", sizes="medium large")
def _draw_threads(pen: _Pen) -> None:
    """Crooked lines in all directions."""
    for x, y in pen.places(1.8 * pen.size):
        points = drawing.wave(pen.rng, x, y, pen.rng.uniform(0, np.pi), 7 * pen.size, 0.6 * pen.size, 5 * pen.size)
        pen.canvas.line(points, max(1.3, 0.35 * pen.size), pen.tint())


@_motif("net", "net of thin walls", "mesh of membranes", "honeycomb", sizes="huge giant", weight=2, bed=True)
def _draw_net(pen: _Pen) -> None:
    """Walls between the cells of a Voronoi diagram, computed per pixel."""
    side = pen.canvas.size
    points = drawing.scatter(pen.rng, side, 1.9 * pen.size, margin=pen.size, limit=120)
    grid = np.stack(np.meshgrid(np.arange(side) + 0.5, np.arange(side) + 0.5), axis=-1)
    gaps = np.sqrt(((grid[:, :, None] - points) ** 2).sum(-1))
    near = np.partition(gaps, 1, axis=-1)[..., :2]
    wall = np.clip(1.5 + (0.12 + 0.12 * pen.amount) * pen.size - (near[..., 1] - near[..., 0]), 0, 1)
    pen.canvas.paint(pen.tint(), wall)


def draw_recipe(rng: np.random.Generator) -> Recipe:
    """Draws a random recipe."""
    ground = "plain" if rng.random() < 0.5 else _pick(rng, GROUNDS)
    shade, colour, second = _pick(rng, SHADES), _draw_colour(rng), _draw_colour(rng)
    weights = np.array([motif.weight for motif in MOTIFS.values()])
    motifs = rng.choice(list(MOTIFS), int(rng.choice([0, 1, 2], p=[0.06, 0.54, 0.4])), p=weights / weights.sum()).tolist()
    # lines with nuclei along them would otherwise be rare
    if len(motifs) == 2 and MOTIFS[motifs[0]].bed and rng.random() < 0.75:
        motifs[1] = _pick(rng, ("spindles", "spindles", "grains", "dots"))
    # beds first
    motifs.sort(key=lambda name: not MOTIFS[name].bed)
    layers = (Layer(m, _pick(rng, AMOUNTS), _pick(rng, MOTIFS[m].sizes), *draw_contrast(rng, shade, colour)) for m in motifs)
    return Recipe(ground, shade, colour, second, tuple(layers))


def render(recipe: Recipe, rng: np.random.Generator, size: int) -> np.ndarray:
    """Renders one texture; positions, rotations and jitter of colour and scale come from `rng`.

    Returns:
        uint8 (size, size, 3).
    """
    ground = _draw_shade(rng, recipe.shade, recipe.colour)
    second = drawing.mix(ground, _draw_shade(rng, recipe.shade, recipe.second_colour), 0.7)
    flow = _Flow.draw(rng, size, max((MOTIFS[layer.motif].bend for layer in recipe.layers), default=0.0))
    canvas = drawing.Canvas(drawing.mix(ground, second, _blend_map(recipe.ground, rng, size, flow.angle)), size)
    for layer in recipe.layers:
        radius = size * SIZES[layer.size] * rng.uniform(0.85, 1.15) / 2
        # the VAE halves the image twice, so motifs under two pixels would be noise
        colour = _draw_shade(rng, layer.shade, layer.colour)
        MOTIFS[layer.motif].draw(_Pen(rng, canvas, max(1.6, radius), AMOUNTS[layer.amount], colour, ground, flow))
    image = canvas.image() * rng.uniform(0.92, 1.06) + rng.normal(0, 0.01, (size, size, 1)).astype(np.float32)
    return drawing.to_uint8(image)


def caption(recipe: Recipe, rng: np.random.Generator) -> str:
    """Describes a recipe in one of many wordings, sometimes without a detail."""
    on = f"on {_describe_ground(recipe, rng)}" if rng.random() < 0.9 else ""
    parts = [_describe_layer(recipe.layers[i], rng) for i in rng.permutation(len(recipe.layers))]
    if len(parts) == 2 and rng.random() < 0.12:
        parts = parts[:1]
    text = " and ".join(parts) or "nothing"
    text = f"{text} {on}".strip() if rng.random() < 0.6 or not on else f"{on[3:]}, {text}"
    return _pick(rng, FRAMES).format(text)


@dataclass(frozen=True)
class Kind:
    """An invented name and its recipe."""

    name: str
    recipe: Recipe


def invent_kinds(seed: int, count: int) -> list[Kind]:
    """Invents `count` kinds with distinct names that contain no word of a tissue's name, determined by the seed."""
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
    """Generates the texture with the given seed and index.

    Returns:
        The image, uint8 (size, size, 3), and its caption.
    """
    rng = np.random.default_rng([seed, 2, index])
    if rng.random() < kind_share:
        kind = kinds[int(rng.integers(len(kinds)))]
        # the size varies, so that a name stands for a kind of texture and not for a single image
        return render(_vary_sizes(kind.recipe, rng), rng, size), _pick(rng, FRAMES).format(kind.name)
    recipe = draw_recipe(rng)
    return render(recipe, rng, size), caption(recipe, rng)


def _vary_sizes(recipe: Recipe, rng: np.random.Generator) -> Recipe:
    return replace(recipe, layers=tuple(replace(layer, size=_pick(rng, MOTIFS[layer.motif].sizes)) for layer in recipe.layers))


def _describe_layer(layer: Layer, rng: np.random.Generator) -> str:
    size = layer.size if rng.random() < 0.8 else ""
    colour = f"{layer.shade} {layer.colour}" if rng.random() < 0.9 else ""
    motif = _pick(rng, MOTIFS[layer.motif].names)
    return " ".join(" ".join((layer.amount if rng.random() < 0.85 else "", size, colour, motif)).split())


def _describe_ground(recipe: Recipe, rng: np.random.Generator) -> str:
    colours = f"{recipe.shade} {recipe.colour}"
    if recipe.ground != "plain" and rng.random() < 0.7:
        colours += f" and {recipe.second_colour}"
    return " ".join(f"{recipe.ground} {colours} {_pick(rng, ('', 'ground', 'area'))}".split())


def _blend_map(ground: str, rng: np.random.Generator, size: int, angle: float) -> np.ndarray:
    """Weight of the second colour at every pixel, float (size, size) in [0, 1]."""
    along = np.linspace(-1, 1, size, dtype=np.float32)
    x, y = np.meshgrid(along, along)
    rotated = x * np.cos(angle) + y * np.sin(angle)
    across = y * np.cos(angle) - x * np.sin(angle)
    if ground == "plain":
        return 0.15 * drawing.noise_field(rng, size, 3)
    if ground == "fading":
        return np.clip(0.5 + 0.5 * rotated, 0, 1)
    if ground == "streaming":
        bend = 0.5 * drawing.noise_field(rng, size, 2)
        return 0.5 + 0.5 * np.sin((across + bend) * rng.uniform(6, 11))
    return drawing.noise_field(rng, size, 9 if ground == "mottled" else 3)


def draw_contrast(rng: np.random.Generator, shade: str, colour: str) -> tuple[str, str]:
    """Draws a shade and a colour in contrast to those of the background."""
    while True:
        drawn = _pick(rng, SHADES), _draw_colour(rng)
        if np.abs(_mix_shade(*drawn) - _mix_shade(shade, colour)).mean() >= MIN_CONTRAST:
            return drawn


def _draw_shade(rng: np.random.Generator, shade: str, colour: str) -> np.ndarray:
    return np.clip(_mix_shade(shade, colour) + rng.normal(0, 0.03, 3), 0, 1)


def _mix_shade(shade: str, colour: str) -> np.ndarray:
    """RGB of a colour mixed with white or black, float32 (3,) in [0, 1]."""
    amount = SHADES[shade]
    end = (1.0, 1.0, 1.0) if amount > 0 else (0.0, 0.0, 0.0)
    return drawing.mix(COLOURS[colour], end, abs(amount))


def _draw_colour(rng: np.random.Generator) -> str:
    return _pick(rng, DYES if rng.random() < 0.8 else COLOURS)


def _invent_word(rng: np.random.Generator) -> str:
    return "".join(_pick(rng, SYLLABLES) for _ in range(int(rng.integers(2, 5)))) + _pick(rng, ENDINGS)


def _pick(rng: np.random.Generator, options) -> str:
    options = tuple(options)
    return options[int(rng.integers(len(options)))]
