"""The motifs of the textures: simple shapes, with or without an arrangement, and their names in captions."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pathsynth.sources import drawing


@dataclass(frozen=True)
class Flow:
    """A direction field: parallel lines at an angle, all bent to the same wave; lengths in pixels."""

    middle: float
    angle: float
    sway: float
    period: float
    phase: float

    @classmethod
    def draw(cls, rng: np.random.Generator, size: int, bend: float) -> Flow:
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
class Pen:
    """State for drawing a layer: canvas, scale in pixels, colours, direction field."""

    rng: np.random.Generator
    canvas: drawing.Canvas
    size: float
    amount: float
    colour: np.ndarray
    ground: np.ndarray
    flow: Flow

    def tint(self, spread: float = 0.05) -> np.ndarray:
        """Draws a colour near that of the layer."""
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

    draw: Callable[[Pen], None]
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

    def register(draw: Callable[[Pen], None]) -> Callable[[Pen], None]:
        MOTIFS[name] = Motif(draw, (name, *synonyms), tuple(sizes.split()), weight, bed, bend)
        return draw

    return register


@_motif("dots", "round dots", "spots", "round nuclei", sizes="small medium", weight=2)
def _draw_dots(pen: Pen) -> None:
    for x, y in pen.places(2.15 * pen.size):
        pen.canvas.polygon(drawing.ellipse(x, y, pen.size, pen.size * pen.rng.uniform(0.85, 1), corners=14), pen.tint())


@_motif("grains", "oval grains", "oval nuclei", sizes="small medium", weight=2)
def _draw_grains(pen: Pen) -> None:
    for x, y in pen.places(2.2 * pen.size):
        angle = pen.rng.uniform(0, np.pi)
        pen.canvas.polygon(drawing.ellipse(x, y, 1.35 * pen.size, 0.65 * pen.size, angle, corners=14), pen.tint())


@_motif("spindles", "long spindles", "spindle nuclei", "elongated nuclei", sizes="small medium", weight=2)
def _draw_spindles(pen: Pen) -> None:
    for x, y in pen.places(3.2 * pen.size):
        angle = pen.flow.angle_at(x, y) + pen.rng.normal(0, 0.08)
        pen.canvas.polygon(drawing.ellipse(x, y, 2.1 * pen.size, 0.6 * pen.size, angle, corners=14), pen.tint())


@_motif("cells", "cells with dark middles", sizes="large huge", weight=1.5)
def _draw_cells(pen: Pen) -> None:
    rim, nucleus = pen.tint(), pen.tint() * 0.55
    for x, y in pen.places(2.1 * pen.size):
        outline = drawing.blob(pen.rng, x, y, pen.size, 0.15, corners=16)
        pen.canvas.polygon(outline, drawing.mix(rim, (1, 1, 1), 0.45))
        pen.canvas.outline(outline, max(1.2, 0.22 * pen.size), rim)
        shift = pen.rng.normal(0, 0.15 * pen.size, 2)
        pen.canvas.polygon(drawing.ellipse(x + shift[0], y + shift[1], 0.42 * pen.size, 0.42 * pen.size, corners=12), nucleus)


@_motif("rings", "hoops", "round rings", sizes="medium large", weight=1.5)
def _draw_rings(pen: Pen) -> None:
    for x, y in pen.places(2.4 * pen.size):
        pen.canvas.outline(drawing.blob(pen.rng, x, y, pen.size, 0.15), max(1.6, 0.35 * pen.size), pen.tint())


@_motif("holes", "bubbles", "droplets", "gaps", sizes="large huge", weight=1.5)
def _draw_holes(pen: Pen) -> None:
    bright = drawing.mix(pen.colour, (1, 1, 1), 0.75)
    for x, y in pen.places(2.3 * pen.size):
        pen.canvas.polygon(
            drawing.blob(pen.rng, x, y, pen.size, pen.rng.uniform(0.1, 0.4)), np.clip(bright + pen.rng.normal(0, 0.02), 0, 1)
        )


@_motif("patches", "blotches", "ragged patches", sizes="large huge", bed=True)
def _draw_patches(pen: Pen) -> None:
    for x, y in pen.places(2.0 * pen.size):
        pen.canvas.polygon(drawing.blob(pen.rng, x, y, 1.2 * pen.size, 0.8), pen.tint(0.07))


@_motif("crumbs", "broken crumbs", "fragments", "shards", sizes="medium large", weight=1.5)
def _draw_crumbs(pen: Pen) -> None:
    for x, y in pen.places(1.5 * pen.size):
        corners = int(pen.rng.integers(4, 7))
        points = drawing.blob(pen.rng, x, y, pen.size * pen.rng.uniform(0.35, 1.1), 1.0, corners=corners)
        pen.canvas.polygon(points, pen.tint(0.12))


@_motif("wreaths", "rings of nuclei", "round glands with pale lumen", "rings of dots", sizes="large huge", weight=4)
def _draw_wreaths(pen: Pen) -> None:
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
def _draw_knots(pen: Pen) -> None:
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


def _draw_strands(pen: Pen, gap: float, width: float) -> None:
    step = pen.size * gap / (0.4 + 0.6 * pen.amount)
    for offset in pen.flow.offsets(step):
        points = pen.flow.line(offset + pen.rng.normal(0, 0.12 * step))
        pen.canvas.line(points, max(1.5, width * pen.size * pen.rng.uniform(0.75, 1.25)), pen.tint())


@_motif("fibres", "straight fibres", "parallel fibres", "stripes", sizes="medium large", weight=4, bed=True)
def _draw_fibres(pen: Pen) -> None:
    _draw_strands(pen, gap=1.6, width=0.8)


@_motif("waves", "wavy fibres", "wavy lines", "ripples", sizes="medium large", weight=3, bed=True, bend=0.12)
def _draw_waves(pen: Pen) -> None:
    _draw_strands(pen, gap=1.8, width=0.7)


@_motif("rows", "rows of dots", "lines of nuclei", "palisades", sizes="medium large", weight=1.5, bend=0.04)
def _draw_rows(pen: Pen) -> None:
    """Dots side by side in rows, each long across its row."""
    step = pen.size * 3.4 / (0.4 + 0.6 * pen.amount)
    for offset in pen.flow.offsets(step):
        points = pen.flow.line(offset)
        # points lie 1.5 px apart along the row
        for x, y in points[:: max(1, round(1.35 * pen.size / 1.5))]:
            angle = pen.flow.angle_at(x, y) + np.pi / 2 + pen.rng.normal(0, 0.1)
            pen.canvas.polygon(drawing.ellipse(x, y, pen.size, 0.6 * pen.size, angle, corners=12), pen.tint())


@_motif("strata", "layers", "stacked layers", "layered bands", sizes="large huge", weight=1.5, bed=True, bend=0.06)
def _draw_strata(pen: Pen) -> None:
    """Broad bands, each of another tone, with a line along every edge."""
    step = pen.size * 3.0 / (0.4 + 0.6 * pen.amount)
    offsets = pen.flow.offsets(step) + pen.rng.normal(0, 0.2 * step)
    edges = [pen.flow.line(offset) for offset in offsets]
    for lower, upper in itertools.pairwise(edges):
        pen.canvas.polygon(np.vstack([lower, upper[::-1]]), drawing.mix(pen.ground, pen.tint(), pen.rng.uniform(0.1, 0.8)))
    for edge in edges:
        pen.canvas.line(edge, max(1.3, 0.3 * pen.size), pen.tint() * 0.8)


@_motif("rims", "rims of nuclei", "edges lined with dots", "lined edges", sizes="medium large", weight=1.5)
def _draw_rims(pen: Pen) -> None:
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
def _draw_whorls(pen: Pen) -> None:
    """Concentric lines around one point."""
    side, step = pen.canvas.size, pen.size * 1.8 / (0.4 + 0.6 * pen.amount)
    x, y = pen.rng.uniform(-0.2, 1.2, 2) * side
    shape = drawing.blob(pen.rng, 0, 0, 1.0, 0.15, corners=48)
    for radius in np.arange(step, 1.7 * side, step):
        pen.canvas.outline(np.array((x, y)) + radius * shape, max(1.5, 0.7 * pen.size), pen.tint())


@_motif("threads", "crooked threads", "tangled threads", sizes="medium large", weight=1.5)
def _draw_threads(pen: Pen) -> None:
    """Crooked lines in all directions."""
    for x, y in pen.places(1.8 * pen.size):
        points = drawing.wave(pen.rng, x, y, pen.rng.uniform(0, np.pi), 7 * pen.size, 0.6 * pen.size, 5 * pen.size)
        pen.canvas.line(points, max(1.3, 0.35 * pen.size), pen.tint())


@_motif("net", "net of thin walls", "mesh of membranes", "honeycomb", sizes="huge giant", weight=2, bed=True)
def _draw_net(pen: Pen) -> None:
    """Walls between the cells of a Voronoi diagram, computed per pixel."""
    side = pen.canvas.size
    points = drawing.scatter(pen.rng, side, 1.9 * pen.size, margin=pen.size, limit=120)
    grid = np.stack(np.meshgrid(np.arange(side) + 0.5, np.arange(side) + 0.5), axis=-1)
    # walls are seldom straight: each pixel is looked up 0 to 3 px away
    grid += 3 * np.stack([drawing.noise_field(pen.rng, side, 6) for _ in range(2)], axis=-1)
    gaps = np.sqrt(((grid[:, :, None] - points) ** 2).sum(-1))
    near = np.partition(gaps, 1, axis=-1)[..., :2]
    wall = np.clip(1.0 + (0.08 + 0.16 * pen.amount) * pen.size - (near[..., 1] - near[..., 0]), 0, 1)
    pen.canvas.paint(pen.tint(), wall)
