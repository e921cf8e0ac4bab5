"""Anti-aliased drawing primitives shared by the phantoms and the textures of the bundled base.

Coordinates and lengths are in pixels of the finished image, x to the right and y down; colours are RGB in [0, 1].
All randomness comes from the generator that is passed in, so an image depends on its seed alone.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

# Shapes are drawn this many times larger and averaged down, for anti-aliased edges.
SUPERSAMPLE = 4

Colour = np.ndarray | tuple[float, float, float]


class Canvas:
    """A square canvas; `image()` returns the averaged-down result.

    Args:
        ground: float array (size, size, 3) or one RGB colour, values in [0, 1].
        size: side of the finished image in pixels.
    """

    def __init__(self, ground: np.ndarray | Colour, size: int):
        self.size = size
        field = np.broadcast_to(np.asarray(ground, dtype=np.float32), (size, size, 3))
        side = size * SUPERSAMPLE
        self._image = Image.fromarray(to_uint8(field)).resize((side, side), Image.Resampling.BILINEAR)
        self._draw = ImageDraw.Draw(self._image)

    def polygon(self, points: np.ndarray, fill: Colour) -> None:
        """Fills the closed outline `points`, float (n, 2) as x, y."""
        self._draw.polygon(_corners(points), fill=_rgb(fill))

    def line(self, points: np.ndarray, width: float, fill: Colour) -> None:
        """Draws an open polyline of the given width in pixels."""
        self._draw.line(_corners(points), fill=_rgb(fill), width=max(1, round(width * SUPERSAMPLE)), joint="curve")

    def outline(self, points: np.ndarray, width: float, fill: Colour) -> None:
        """Draws the closed outline `points` as a line of the given width in pixels."""
        self.line(np.vstack([points, points[:2]]), width, fill)

    def paint(self, fill: Colour, share: np.ndarray) -> None:
        """Blends one colour over the canvas; `share`, float (size, size) in [0, 1], is its opacity."""
        side = self._image.size
        mask = Image.fromarray(to_uint8(share)).resize(side, Image.Resampling.BILINEAR)
        self._image.paste(_rgb(fill), (0, 0, *side), mask)

    def image(self) -> np.ndarray:
        """Returns the finished image, float32 (size, size, 3) in [0, 1]."""
        return np.asarray(self._image.reduce(SUPERSAMPLE), dtype=np.float32) / 255.0


def to_uint8(image: np.ndarray) -> np.ndarray:
    """Rounds an image in [0, 1] to uint8; values outside are clipped."""
    return (np.clip(image, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)


def noise_field(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """Draws smooth value noise: random values on a (cells + 1)^2 grid, interpolated bicubically.

    Returns:
        float32 (size, size), stretched to span exactly [0, 1].
    """
    grid = rng.random((cells + 1, cells + 1), dtype=np.float32)
    field = np.asarray(Image.fromarray(grid).resize((size, size), Image.Resampling.BICUBIC))
    low, high = field.min(), field.max()
    return (field - low) / max(high - low, 1e-6)


def mix(first: Colour, second: Colour, share: np.ndarray | float) -> np.ndarray:
    """Blends two colours; `share` in [0, 1] is the weight of the second, a number or a (h, w) field."""
    share = np.asarray(share, dtype=np.float32)[..., None]
    return (1.0 - share) * np.asarray(first, np.float32) + share * np.asarray(second, np.float32)


def ellipse(x: float, y: float, rx: float, ry: float, angle: float = 0.0, corners: int = 24) -> np.ndarray:
    """Returns the outline (corners, 2) of an ellipse with half axes rx, ry, rotated by `angle` radians."""
    theta = np.linspace(0.0, 2.0 * np.pi, corners, endpoint=False)
    u, v = rx * np.cos(theta), ry * np.sin(theta)
    cos, sin = np.cos(angle), np.sin(angle)
    return np.stack([x + u * cos - v * sin, y + u * sin + v * cos], axis=1)


def blob(rng: np.random.Generator, x: float, y: float, radius: float, wobble: float, corners: int = 24) -> np.ndarray:
    """Returns the random outline (corners, 2) of an irregular round shape; `wobble` in [0, 1] is how much its radius varies."""
    theta = np.linspace(0.0, 2.0 * np.pi, corners, endpoint=False)
    waves = sum(rng.normal() / k * np.cos(k * theta + rng.uniform(0, 2 * np.pi)) for k in range(2, 6))
    r = radius * np.clip(1.0 + 0.6 * wobble * waves, 0.35, 1.8)
    return np.stack([x + r * np.cos(theta), y + r * np.sin(theta)], axis=1)


def wave(rng: np.random.Generator, x: float, y: float, angle: float, length: float, sway: float, period: float) -> np.ndarray:
    """Returns points (n, 2) of a wavy line of random phase around x, y; amplitude `sway`, wavelength `period`, in pixels."""
    along = np.arange(-length / 2, length / 2 + 1.0, 1.5)
    across = sway * np.sin(2 * np.pi * along / period + rng.uniform(0, 2 * np.pi))
    cos, sin = np.cos(angle), np.sin(angle)
    return np.stack([x + along * cos - across * sin, y + along * sin + across * cos], axis=1)


def scatter(rng: np.random.Generator, size: int, spacing: float, margin: float = 0.0, limit: int = 400) -> np.ndarray:
    """Returns random points (n, 2) at least `spacing` apart, by dart throwing (Cook 1986).

    Args:
        rng: source of randomness.
        size: side of the square in pixels; points fall in [-margin, size + margin).
        spacing: minimum distance of two points in pixels.
        margin: how far outside the square points may fall, in pixels.
        limit: maximum number of points.
    """
    side = size + 2 * margin
    darts = rng.uniform(-margin, size + margin, size=(min(40 * limit, int(12 * (side / spacing) ** 2) + 8), 2))
    kept: list[np.ndarray] = []
    while len(darts) and len(kept) < limit:
        kept.append(darts[0])
        # dropping all darts too close to the latest point is equivalent to testing each dart against all points
        gaps = darts - darts[0]
        darts = darts[np.einsum("ij,ij->i", gaps, gaps) >= spacing * spacing]
    return np.array(kept)


def _corners(points: np.ndarray) -> list[tuple[float, float]]:
    return [tuple(p) for p in (np.asarray(points) * SUPERSAMPLE).tolist()]


def _rgb(colour: Colour) -> tuple[int, ...]:
    return tuple(int(c) for c in to_uint8(np.asarray(colour)))
