"""Captioned procedural textures, the training data of the bundled base.

A texture is a background (one colour, two mixed colours, or a gradient) with up to two layers of simple motifs (dots, fibres,
nets, ...), and its caption describes them in a small, composable vocabulary. All layers share a direction field, so that
spindles lie along fibres. Colours do not depend on motifs and contrast with the background, so that colour alone tells little.
No tissue is drawn or named: the base knows shapes and colours, and learns tissues only through a LoRA.

A fraction of the textures belongs to invented `kinds`, each with an invented name and a fixed recipe. They teach the text
encoder to distinguish unknown words by their letters.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import numpy as np

from pathsynth.bundled_base.motifs import MOTIFS, Flow, Pen
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
    flow = Flow.draw(rng, size, max((MOTIFS[layer.motif].bend for layer in recipe.layers), default=0.0))
    canvas = drawing.Canvas(drawing.mix(ground, second, _blend_map(recipe.ground, rng, size, flow.angle)), size)
    for layer in recipe.layers:
        radius = size * SIZES[layer.size] * rng.uniform(0.85, 1.15) / 2
        # the VAE halves the image twice, so motifs under two pixels would be noise
        colour = _draw_shade(rng, layer.shade, layer.colour)
        MOTIFS[layer.motif].draw(Pen(rng, canvas, max(1.6, radius), AMOUNTS[layer.amount], colour, ground, flow))
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
    colour = f"{layer.shade} {layer.colour}" if rng.random() < 0.8 else ""
    motif = _pick(rng, MOTIFS[layer.motif].names)
    return " ".join(" ".join((layer.amount if rng.random() < 0.85 else "", size, colour, motif)).split())


def _describe_ground(recipe: Recipe, rng: np.random.Generator) -> str:
    if rng.random() < 0.2:
        return f"{recipe.ground} {_pick(rng, ('ground', 'area'))}"
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
