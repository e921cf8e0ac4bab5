"""Phantoms of the nine PathMNIST tissues: H&E-like images drawn from a seed, which differ in structure, and also in colour.

A renderer draws doses of haematoxylin, eosin and dirt, not colours. The stain of the image converts them to colours at the
end, by the Beer-Lambert law as in Ruifrok and Johnston (Anal. Quant. Cytol. Histol. 2001). So stains vary as strongly as
between real slides without changing the structure. Features that distinguish two tissues measure at least 3 px at 64 px,
because an autoencoder with 4x downsampling loses finer ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from PIL import Image, ImageFilter

from pathsynth.data import labels
from pathsynth.data.archives import SPLITS
from pathsynth.sources.drawing import Canvas, mix, noise_field, to_uint8
from pathsynth.sources.stains import CENTRES, Range

# Renderers measure in 64ths of the image's side, so the image size changes the resolution and not the tissue.
FRAME = 64.0
# Larger than the number of fibres in any image, so that every image size uses the same number of random draws.
MAX_FIBRES = 64
# Standard deviation of the camera's noise.
GRAIN = 0.008


def draw_tissue(label: int, seed: tuple[int, ...], size: int, centre: str) -> np.ndarray:
    """Draws one phantom.

    Args:
        label: index into `labels.PATHMNIST`.
        seed: entropy of the image's own generator, non-negative integers.
        size: side of the image in pixels, at least 32; every size shows the same tissue.
        centre: "a" or "b"; the same seed gives the same structure in a different stain.

    Returns:
        uint8 (size, size, 3), RGB.
    """
    rng = np.random.default_rng(np.random.SeedSequence(seed))
    stain = CENTRES[centre].sample(rng)
    doses = RENDERERS[labels.PATHMNIST[label]](rng, size)
    picture = Image.fromarray(to_uint8(stain.develop(doses)))
    picture = picture.filter(ImageFilter.GaussianBlur(stain.blur * size / FRAME))
    # after the blur: grain comes from the camera, behind the lens
    grain = rng.normal(0.0, GRAIN, (size, size, 1)).astype(np.float32)
    return to_uint8(np.asarray(picture, np.float32) / 255.0 + grain)


def draw_split(
    per_tissue: int, seed: int, size: int, split: str, progress: Callable[[Iterable], Iterable] = iter
) -> tuple[np.ndarray, np.ndarray]:
    """Draws a split, with tissues in alternating order.

    Image i of tissue t depends only on the seed, the split, t and i, so a smaller split is a prefix of a larger one.

    Args:
        per_tissue: images of each tissue, at least 1.
        seed: non-negative seed of the data set.
        size: side of the images in pixels, at least 32.
        split: "train" and "val" are stained by centre a, "test" by centre b.
        progress: wraps the iterable over images, like `tqdm.tqdm`.

    Returns:
        Images, uint8 (9 * per_tissue, size, size, 3), and labels, uint8 (9 * per_tissue,).
    """
    tissues = len(labels.PATHMNIST)
    images = np.empty((tissues * per_tissue, size, size, 3), np.uint8)
    centre = "b" if split == "test" else "a"
    for row in progress(range(len(images))):
        i, tissue = divmod(row, tissues)
        images[row] = draw_tissue(tissue, (seed, SPLITS.index(split), tissue, i), size, centre)
    return images, np.tile(np.arange(tissues, dtype=np.uint8), per_tissue)


class _Slide:
    """A canvas of doses, (haematoxylin, eosin, dirt), measured in 64ths of its side."""

    def __init__(self, ground: np.ndarray, size: int):
        self._canvas = Canvas(ground, size)

    def polygons(self, outlines: np.ndarray, fills: np.ndarray) -> None:
        """Fills outlines (n, corners, 2) with doses (n, 3)."""
        for points, fill in zip(outlines * (self._canvas.size / FRAME), fills, strict=True):
            self._canvas.polygon(points, fill)

    def image(self) -> np.ndarray:
        """Returns the doses, float32 (size, size, 3)."""
        return self._canvas.image()


def _adipose(rng: np.random.Generator, size: int) -> np.ndarray:
    """Large empty cells with thin membranes that thicken where three meet, and a few flat nuclei in them."""
    spacing = rng.uniform(20.0, 30.0)
    wall = _walls(size, _lattice(rng, spacing, 0.22), rng.uniform(1.3, 1.9), bend=0.7 * noise_field(rng, size, 6))
    haze = _dose(0.06 * rng.random(), 0.16 * rng.random())
    membrane = _dose(rng.uniform(0.05, 0.25), rng.uniform(0.6, 1.0))
    ground = mix(haze, membrane, wall)
    slide = _Slide(ground, size)
    spots = rng.uniform(0.0, FRAME, (100, 2))
    spots = spots[_sample(wall, spots) > 0.9][: rng.integers(0, 4)]
    slide.polygons(_ovals(rng, spots, 3.2, 1.7, _along(wall, spots)), _doses(rng, len(spots), 0.8, 0.3))
    return slide.image()


def _background(rng: np.random.Generator, size: int) -> np.ndarray:
    """Empty glass: a film of stain, uneven at the scale of the image, with up to two specks of dust."""
    film = _dose(rng.uniform(0.0, 0.12), rng.uniform(0.0, 0.22))
    unevenness = noise_field(rng, size, int(rng.integers(1, 3)))
    ground = film * (1.0 + rng.uniform(0.1, 0.4) * (unevenness[..., None] - 0.5))
    slide = _Slide(ground, size)
    count = rng.choice([0, 1, 2], p=[0.5, 0.35, 0.15])
    spots = rng.uniform(4.0, 60.0, (count, 2))
    radii = rng.uniform(1.5, 2.5, count)
    outlines = _ovals(rng, spots, radii, 0.7 * radii, rng.uniform(0, np.pi, count), wobble=0.3)
    slide.polygons(outlines, np.tile((0.0, 0.0, rng.uniform(0.3, 0.8)), (count, 1)))
    return slide.image()


def _debris(rng: np.random.Generator, size: int) -> np.ndarray:
    """Smudges under fragments of all sizes and doses, without order or intact nuclei."""
    smudge = noise_field(rng, size, int(rng.integers(5, 8)))
    ground = mix(_dose(0.03, 0.08), _dose(rng.uniform(0.15, 0.4), rng.uniform(0.4, 0.9)), smudge)
    slide = _Slide(ground, size)
    # wide pale fragments first, so that the small dark ones lie on top
    for spacing, radius, purple in ((14.0, 6.0, (0.05, 0.35)), (9.0, 2.8, (0.2, 0.9))):
        points = _lattice(rng, spacing * rng.uniform(0.9, 1.2), 0.6)
        points = points[rng.random(len(points)) < rng.uniform(0.4, 0.7)]
        count = len(points)
        long = radius * rng.uniform(0.8, 1.6, count)
        shards = _ovals(rng, points, long, long * rng.uniform(0.45, 0.9, count), rng.uniform(0, np.pi, count), 0.5, corners=8)
        doses = np.stack([rng.uniform(*purple, count), rng.uniform(0.2, 0.8, count), np.zeros(count)], axis=1)
        slide.polygons(shards, doses)
    return slide.image()


def _lymphocytes(rng: np.random.Generator, size: int) -> np.ndarray:
    """A sheet of small, round, dark, uniform nuclei, densely packed, with little cytoplasm."""
    slide = _Slide(_tissue(rng, size, (0.03, 0.2), (0.05, 0.45)), size)
    radius = rng.uniform(2.5, 3.3)
    points = _lattice(rng, radius * rng.uniform(2.35, 2.9), 0.22)
    points = points[rng.random(len(points)) < rng.uniform(0.8, 1.0)]
    count = len(points)
    radii = radius * rng.uniform(0.88, 1.12, count)
    outlines = _ovals(rng, points, radii, radii * rng.uniform(0.9, 1.0, count), rng.uniform(0, np.pi, count))
    slide.polygons(outlines, _doses(rng, count, rng.uniform(0.65, 0.95), 0.2))
    return slide.image()


def _mucus(rng: np.random.Generator, size: int) -> np.ndarray:
    """Pale slime that streams in broad soft bends around empty vacuoles, with at most two stray nuclei."""
    level = _streams(rng, size, sway=rng.uniform(2.0, 6.0), period=rng.uniform(50.0, 90.0), warp=rng.uniform(12.0, 20.0))
    strand = _strands(rng, level, rng.uniform(3.5, 5.0)) * (0.5 + 0.5 * noise_field(rng, size, 4))
    pale = _dose(rng.uniform(0.0, 0.08), rng.uniform(0.0, 0.1))
    slime = pale + _dose(rng.uniform(0.12, 0.3), rng.uniform(0.0, 0.3))
    slide = _Slide(mix(pale, slime, strand), size)
    spots = _lattice(rng, 17.0, 0.35)
    spots = rng.permutation(spots[_inside(spots)])[: rng.integers(5, 10)]
    long = rng.uniform(3.5, 7.5, len(spots))
    angles = _along(level, spots)
    flat = rng.uniform(0.6, 0.85)
    rims = _ovals(rng, spots, long + 1.5, flat * long + 1.5, angles, wobble=0.05, corners=18)
    slide.polygons(rims, np.tile(slime, (len(spots), 1)))
    holes = _ovals(rng, spots, long, flat * long, angles, wobble=0.05, corners=18)
    slide.polygons(holes, np.tile(pale * 0.4, (len(spots), 1)))
    stray = rng.uniform(4.0, 60.0, (rng.integers(0, 3), 2))
    slide.polygons(_ovals(rng, stray, 2.6, 2.2, np.zeros(len(stray))), _doses(rng, len(stray), 0.6, 0.2))
    return slide.image()


def _smooth_muscle(rng: np.random.Generator, size: int) -> np.ndarray:
    """Straight parallel fibres, densely packed, with long blunt nuclei aligned to them."""
    level = _streams(rng, size, sway=0.0, period=1.0, warp=rng.uniform(0.0, 2.0))
    width = rng.uniform(6.0, 8.5)
    ground = _fibres(rng, level, width, _eosin(rng), cleft=rng.uniform(0.45, 0.8))
    slide = _Slide(ground, size)
    points = _lattice(rng, rng.uniform(11.0, 14.0), 0.3)
    points = points[rng.random(len(points)) < 0.8]
    long = rng.uniform(4.5, 6.5, len(points))
    outlines = _ovals(rng, points, long, rng.uniform(1.9, 2.4, len(points)), _along(level, points), taper=-0.4)
    slide.polygons(outlines, _doses(rng, len(points), rng.uniform(0.6, 0.9), 0.4))
    return slide.image()


def _normal_mucosa(rng: np.random.Generator, size: int) -> np.ndarray:
    """Round glands side by side: a basal ring of nuclei, a belt of pale cytoplasm and a wide open lumen."""
    slide = _Slide(_tissue(rng, size, (0.05, 0.25), (0.4, 0.8)), size)
    radius = rng.uniform(12.5, 15.0)
    glands = _lattice(rng, 2.0 * radius + rng.uniform(1.5, 4.0), 0.03)
    cytoplasm = _dose(rng.uniform(0.1, 0.28), rng.uniform(0.1, 0.35))
    lumen = _dose(0.05 * rng.random(), 0.1 * rng.random())
    none = np.zeros(len(glands))
    slide.polygons(_ovals(rng, glands, radius, radius, none, 0.03, corners=24), np.tile(cytoplasm, (len(glands), 1)))
    slide.polygons(_ovals(rng, glands, 0.45 * radius, 0.45 * radius, none, 0.12), np.tile(lumen, (len(glands), 1)))
    ring = radius - 2.6
    count = round(2 * np.pi * ring / rng.uniform(5.6, 6.4))
    theta = 2 * np.pi * np.arange(count) / count + rng.uniform(0, 2 * np.pi, (len(glands), 1))
    spots = glands[:, None] + ring * np.stack([np.cos(theta), np.sin(theta)], axis=-1)
    spots, theta = spots.reshape(-1, 2), theta.reshape(-1)
    visible = _inside(spots, margin=3.0)
    outlines = _ovals(rng, spots[visible], 2.5, 2.2, theta[visible])
    slide.polygons(outlines, _doses(rng, int(visible.sum()), rng.uniform(0.65, 0.9), 0.3))
    return slide.image()


def _stroma(rng: np.random.Generator, size: int) -> np.ndarray:
    """Wavy bundles of collagen with gaps between them and a few thin spindle-shaped nuclei along the waves."""
    level = _streams(rng, size, sway=rng.uniform(2.6, 4.2), period=rng.uniform(24.0, 36.0), warp=rng.uniform(6.0, 11.0))
    ground = _fibres(rng, level, rng.uniform(7.0, 10.0), _eosin(rng), cleft=rng.uniform(0.8, 1.0))
    slide = _Slide(ground, size)
    points = _lattice(rng, 18.0, 0.3)
    points = rng.permutation(points[_inside(points)])[: rng.integers(3, 7)]
    outlines = _ovals(rng, points, rng.uniform(5.0, 6.5, len(points)), 2.2, _along(level, points), taper=0.5)
    slide.polygons(outlines, _doses(rng, len(points), rng.uniform(0.6, 0.9), 0.4))
    return slide.image()


def _adenocarcinoma(rng: np.random.Generator, size: int) -> np.ndarray:
    """Crowded irregular glands: large pleomorphic nuclei piled up around slit-like lumina."""
    glands = _lattice(rng, rng.uniform(30.0, 38.0), 0.25)
    bands = _walls(size, glands, rng.uniform(1.8, 3.0), bend=5.0 * noise_field(rng, size, 4))
    epithelium = _dose(rng.uniform(0.2, 0.45), rng.uniform(0.3, 0.6))
    slide = _Slide(mix(epithelium, _dose(0.06, rng.uniform(0.3, 0.7)), bands), size)
    tilt = rng.uniform(0, np.pi, len(glands))
    long, short = rng.uniform(6.0, 11.0, len(glands)), rng.uniform(1.9, 3.0, len(glands))
    points = _lattice(rng, rng.uniform(7.0, 8.2), 0.25)
    free = _sample(bands, points) < 0.5
    for gland, angle, a, b in zip(glands, tilt, long, short, strict=True):
        u, v = _rotate(points - gland, angle)
        free &= (u / (a + 1.0)) ** 2 + (v / (b + 2.4)) ** 2 > 1.0
    count = len(points)
    rx = rng.uniform(2.8, 4.8, count)
    outlines = _ovals(rng, points, rx, rx * rng.uniform(0.6, 0.95, count), rng.uniform(0, np.pi, count), wobble=0.2)
    doses = _doses(rng, count, rng.uniform(0.65, 0.9), 0.3, spread=0.18)
    slide.polygons(outlines[free], doses[free])
    lumen = _dose(0.04, 0.15 * rng.random())
    slide.polygons(_ovals(rng, glands, long, short, tilt, wobble=0.3, taper=-0.3, corners=16), np.tile(lumen, (len(glands), 1)))
    return slide.image()


RENDERERS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "adipose": _adipose,
    "background": _background,
    "debris": _debris,
    "lymphocytes": _lymphocytes,
    "mucus": _mucus,
    "smooth muscle": _smooth_muscle,
    "normal colon mucosa": _normal_mucosa,
    "cancer-associated stroma": _stroma,
    "colorectal adenocarcinoma epithelium": _adenocarcinoma,
}


def _dose(haematoxylin: float, eosin: float) -> np.ndarray:
    return np.array((haematoxylin, eosin, 0.0))


def _doses(rng: np.random.Generator, count: int, haematoxylin: float, eosin: float, spread: float = 0.08) -> np.ndarray:
    """Doses (count, 3) of nuclei that vary slightly in haematoxylin."""
    doses = np.tile(_dose(haematoxylin, eosin), (count, 1))
    doses[:, 0] += rng.uniform(-spread, spread, count)
    return doses


def _eosin(rng: np.random.Generator) -> np.ndarray:
    return _dose(rng.uniform(0.05, 0.3), rng.uniform(0.5, 1.0))


def _tissue(rng: np.random.Generator, size: int, haematoxylin: Range, eosin: Range) -> np.ndarray:
    """A slightly uneven ground (size, size, 3) of one dose from the given ranges."""
    dose = _dose(rng.uniform(*haematoxylin), rng.uniform(*eosin))
    return dose * (0.8 + 0.4 * noise_field(rng, size, 5)[..., None])


def _pixels(size: int) -> np.ndarray:
    """Centres of the pixels, float32 (size, size, 2) as x, y in the frame."""
    steps = (np.arange(size, dtype=np.float32) + 0.5) * (FRAME / size)
    return np.stack(np.meshgrid(steps, steps), axis=-1)


def _rotate(points: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates of points (..., 2) along and across the direction `angle`."""
    cos, sin = np.cos(angle), np.sin(angle)
    return points[..., 0] * cos + points[..., 1] * sin, points[..., 1] * cos - points[..., 0] * sin


def _inside(points: np.ndarray, margin: float = 0.0) -> np.ndarray:
    return np.asarray(((points > -margin) & (points < FRAME + margin)).all(axis=1))


def _lattice(rng: np.random.Generator, spacing: float, jitter: float) -> np.ndarray:
    """Points (n, 2) of a rotated hexagonal lattice over the frame and its rim, each moved by up to `jitter` spacings.

    Dart throwing would look the same at this size, but takes several milliseconds for a hundred points.
    """
    reach = int(0.75 * FRAME / spacing) + 2
    i, j = np.meshgrid(np.arange(-reach, reach + 1), np.arange(-reach, reach + 1))
    points = spacing * np.stack([i + 0.5 * (j % 2), j * np.sqrt(0.75)], axis=-1).reshape(-1, 2)
    points = points + spacing * rng.uniform(-jitter, jitter, points.shape) + rng.uniform(0, spacing, 2)
    along, across = _rotate(points, rng.uniform(0, np.pi))
    points = np.stack([along, across], axis=1) + FRAME / 2
    return points[_inside(points, margin=min(0.6 * spacing, 16.0))]


def _walls(size: int, seeds: np.ndarray, half_width: float, bend: np.ndarray) -> np.ndarray:
    """Soft walls between the Voronoi cells of `seeds`, thicker where several meet; float32 (size, size) in [0, 1].

    Args:
        size: side of the field in pixels.
        seeds: centres (n, 2) of the cells.
        half_width: half the width of a wall.
        bend: field (size, size) by which the walls are displaced.
    """
    x, y = np.moveaxis(_pixels(size) + bend[..., None], -1, 0)
    seeds = seeds.astype(np.float32)
    distance = np.hypot(x[..., None] - seeds[:, 0], y[..., None] - seeds[:, 1])
    nearest = distance.min(axis=-1)
    # a soft minimum over the other distances, which rounds the corners of the cells
    near = np.exp(-0.7 * (distance - nearest[..., None])).sum(axis=-1) - 1.0
    to_wall = -np.log(np.maximum(near, 1e-9)) / 1.4
    return np.clip(half_width - to_wall + 0.5, 0.0, 1.0)


def _streams(rng: np.random.Generator, size: int, sway: float, period: float, warp: float) -> np.ndarray:
    """A positive field (size, size) whose contours run in one direction, sway with `period` and are warped by noise."""
    along, across = _rotate(_pixels(size) - FRAME / 2, rng.uniform(0, np.pi))
    swing = np.sin(2 * np.pi * along / period + rng.uniform(0, 2 * np.pi))
    return FRAME + across + sway * swing + warp * noise_field(rng, size, 3)


def _fibres(rng: np.random.Generator, level: np.ndarray, width: float, dose: np.ndarray, cleft: float) -> np.ndarray:
    """Doses (size, size, 3) of fibres along the contours of `level`; `cleft` in [0, 1] is how empty the gaps are."""
    place = level / width
    index = place.astype(int)
    tone = rng.uniform(0.7, 1.15, MAX_FIBRES)[index]
    # up to 3 px of each boundary belong to the gap, with soft edges
    edge = np.abs(place - index - 0.5) * 2.0
    gap = np.clip((edge - 0.45) / 0.35, 0.0, 1.0) * cleft
    return dose * (tone * (1.0 - 0.85 * gap))[..., None]


def _strands(rng: np.random.Generator, level: np.ndarray, width: float) -> np.ndarray:
    """Soft strands of varying strength along the contours of `level`, (size, size) in [0, 1]; `width` is half a strand's."""
    knots = np.arange(MAX_FIBRES)
    strength = np.where(knots % 2, rng.uniform(0.5, 1.0, MAX_FIBRES), rng.uniform(0.0, 0.2, MAX_FIBRES))
    return np.interp(level / width, knots, strength)


def _along(level: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Direction (n,) in radians of the contours of a field (size, size) at points (n, 2)."""
    down, right = np.gradient(level)
    return np.arctan2(_sample(right, points), -_sample(down, points))


def _sample(field: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Values (n,) of a field (size, size) at points (n, 2), clamped to the border."""
    size = len(field)
    columns, rows = np.clip((points * (size / FRAME)).astype(int), 0, size - 1).T
    return field[rows, columns]


def _ovals(
    rng: np.random.Generator,
    centres: np.ndarray,
    rx: np.ndarray | float,
    ry: np.ndarray | float,
    angles: np.ndarray,
    wobble: float = 0.06,
    taper: float = 0.0,
    corners: int = 12,
) -> np.ndarray:
    """Outlines (n, corners, 2) of ovals around `centres` (n, 2), vectorised because a loop dominates the drawing time.

    Args:
        rng: source of randomness.
        centres: float (n, 2).
        rx, ry: half axes along and across `angles`, numbers or (n,).
        angles: radians (n,).
        wobble: largest displacement of a corner, relative to the half axes.
        taper: above 0 for pointed ends, below 0 for blunt ones.
        corners: number of corners of each outline.
    """
    count = len(centres)
    theta = np.linspace(0.0, 2.0 * np.pi, corners, endpoint=False)
    jitter = 1.0 + rng.uniform(-wobble, wobble, (count, corners))
    u = np.broadcast_to(rx, count)[:, None] * np.cos(theta) * jitter
    v = np.broadcast_to(ry, count)[:, None] * np.sin(theta) * np.abs(np.sin(theta) + 1e-9) ** taper * jitter
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    return np.stack([u * cos - v * sin, u * sin + v * cos], axis=-1) + np.asarray(centres)[:, None]
