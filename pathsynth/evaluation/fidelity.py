"""How close images are to real ones, and how varied: distances and shares by the features of both.

The features are `Rows`, read in blocks: memory grows with their dimensions and by a few numbers per image. Sums are float64.
All intervals are those of the scored images with the reference held as it is: they tell two sets apart that are compared with
the same reference.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pathsynth.classifiers.metrics import DIGITS
from pathsynth.core.rows import Rows, select_rows
from pathsynth.evaluation.neighbours import BLOCK, pieces, squared_distances, squared_radii

if TYPE_CHECKING:
    import torch

# What has an interval over all tissues, and the score it is of.
INTERVALS = {"frechet": "frechet_distance", "kernel": "kernel_distance", "precision": "precision", "density": "density"}
KERNEL_DIGITS = 8
# k of precision, recall, density and coverage, as Naeem et al. (ICML 2020) recommend.
NEAREST_NEIGHBOURS = 5
# A neighbour at exactly the radius is outside, whatever the rounding of two ways to the same distance.
TIE = 1.0 - 1e-9


@dataclass(frozen=True)
class Sums:
    """Sums over rows; those of parts add up to those of the whole.

    Attributes:
        count: number of rows.
        total: sum of the rows, float64 (D,).
        outer: sum of their outer products, float64 (D, D).
    """

    count: int
    total: torch.Tensor
    outer: torch.Tensor

    def without(self, part: Sums) -> Sums:
        """Sums over the rows that are not in a part of them."""
        return Sums(self.count - part.count, self.total - part.total, self.outer - part.outer)

    def mean(self) -> torch.Tensor:
        """Mean (D,), of at least 1 row."""
        return self.total / self.count

    def covariance(self) -> torch.Tensor:
        """Unbiased covariance (D, D), of at least 2 rows."""
        return (self.outer - self.total[:, None] * self.mean()) / (self.count - 1)


@dataclass(frozen=True)
class Normal:
    """The normal distribution that others are compared with in a Fréchet distance.

    Attributes:
        mean: float64 (D,).
        trace: of the covariance.
        root: symmetric root of the covariance, float64 (D, D).
    """

    mean: torch.Tensor
    trace: float
    root: torch.Tensor


@dataclass
class RealImages:
    """Real images that sets are compared with; what depends on them alone is computed once.

    Attributes:
        rows: features (M, D).
        neighbours: k, of whose distance the radii are.
        device: where distances are computed.
    """

    rows: Rows
    neighbours: int
    device: str = "cpu"

    @cached_property
    def normal(self) -> Normal:
        """Their side of the Fréchet distance."""
        return normal(feature_sums(self.rows))

    @cached_property
    def radii(self) -> torch.Tensor:
        """Squared distances (M,) of each image to its k-th nearest among the others."""
        return squared_radii(self.rows, self.neighbours, self.device)


class Reference:
    """Real images with their tissues, for the realism of several sets.

    Args:
        rows: features (M, D).
        labels: integers (M,), indices of tissues.
        neighbours: k, at least 1.
        device: where distances are computed.

    Raises:
        ValueError: for shapes that do not fit, or `neighbours` under 1.
    """

    def __init__(self, rows: Rows, labels: np.ndarray, neighbours: int, device: str = "cpu"):
        if neighbours < 1:
            raise ValueError(f"neighbours: {neighbours} is less than 1")
        self.labels = _checked(rows, labels, "reference")
        self._rows = rows
        self.whole = RealImages(rows, neighbours, device)
        self._tissues: dict[int, RealImages] = {}

    def tissue(self, index: int) -> RealImages:
        """The images of one tissue."""
        if index not in self._tissues:
            rows = select_rows(self._rows, np.flatnonzero(self.labels == index))
            self._tissues[index] = RealImages(rows, self.whole.neighbours, self.whole.device)
        return self._tissues[index]

    def mixed(self, indices: np.ndarray) -> Reference:
        """The same with these of its images, sorted indices (n,), as the whole; each tissue keeps all of its own.

        For sets whose tissues are mixed otherwise: the whole is then mixed like them.
        """
        other = copy.copy(self)
        other.whole = RealImages(select_rows(self._rows, indices), self.whole.neighbours, self.whole.device)
        return other


class Settings(NamedTuple):
    """How scores are estimated.

    Attributes:
        kernel_subsets: subsets of the kernel distance, at least 1.
        kernel_subset_size: most images of such a subset, at least 2.
        resamples: bootstrap sets.
        groups: groups of the jackknife, at least 3.
    """

    kernel_subsets: int = 100
    kernel_subset_size: int = 1000
    resamples: int = 2000
    groups: int = 10


def realism_scores(
    features: Rows,
    labels: np.ndarray,
    reference: Reference,
    *,
    slugs: Sequence[str],
    seed: int,
    settings: Settings | None = None,
) -> dict:
    """Scores the realism and the variety of images, over all tissues and for each: its images against its real ones.

    Args:
        features: (N, D); N may be 0.
        labels: integers (N,), indices into `slugs`.
        reference: the real images.
        slugs: names of all tissues.
        seed: non-negative seed of everything that is drawn; each tissue draws for itself.
        settings: see `Settings`.

    Returns:
        n_images, n_reference, frechet_distance, frechet_bias, frechet_full_rank (whether both sets have more images than
        dimensions, without which most of the distance is bias), kernel_distance, precision, recall, density, coverage;
        {name}_low and {name}_high of a 95 % interval for frechet, kernel, precision and density; per_tissue.{slug} with the
        same but intervals. A score that these images cannot have is absent, and `undefined` says why.

    Raises:
        ValueError: for shapes that do not fit, a label outside `slugs`, settings that are impossible, or features that are
            not finite.
    """
    settings = _checked_settings(settings or Settings())
    labels = _checked(features, labels, "features")
    if features.shape[1] != reference.whole.rows.shape[1]:
        raise ValueError(f"features: {features.shape[1]} dimensions, of the reference {reference.whole.rows.shape[1]}")
    if labels.size and not 0 <= labels.min() <= labels.max() < len(slugs):
        raise ValueError(f"labels: {labels.min()} to {labels.max()}, expected 0 to {len(slugs) - 1}")
    result = _realism(_Comparison(features, reference.whole, settings, (seed, 0), labels))
    result["per_tissue"] = {
        slug: _realism(
            _Comparison(select_rows(features, np.flatnonzero(labels == i)), reference.tissue(i), settings, (seed, i + 1))
        )
        for i, slug in enumerate(slugs)
    }
    return result


def feature_sums(rows: Rows, size: int = BLOCK) -> Sums:
    """Sums of features (N, D), in blocks of rows."""
    import torch

    total = torch.zeros(rows.shape[1], dtype=torch.float64)
    outer = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64)
    for _, block in pieces(rows, size=size):
        total += block.sum(dim=0)
        outer.addmm_(block.T, block)
    return Sums(len(rows), total, outer)


def normal(sums: Sums) -> Normal:
    """The normal distribution with the mean and the covariance of at least 2 rows."""
    import torch

    covariance = sums.covariance()
    with _one_thread():
        values, vectors = torch.linalg.eigh(covariance)
    root = vectors * values.clamp(min=0.0).sqrt() @ vectors.T
    return Normal(sums.mean(), float(covariance.trace()), root)


def frechet_distance(real: Normal, scored: Sums) -> float:
    """Fréchet distance of two normal distributions (Heusel et al., NeurIPS 2017, equation 6).

    |m - n|^2 + tr(A) + tr(B) - 2 tr((A B)^(1/2)) of the means m, n and the unbiased covariances A, B. A B has the eigenvalues
    of A^(1/2) B A^(1/2), which is symmetric.

    Args:
        real: of at least 2 rows.
        scored: sums over at least 2 rows.

    Returns:
        Distance >= 0; what rounding leaves below 0 counts as 0.
    """
    import torch

    covariance = scored.covariance()
    both = real.root @ covariance @ real.root
    with _one_thread():
        values = torch.linalg.eigvalsh(both)
    roots = values.clamp(min=0.0).sqrt().sum()
    means = (real.mean - scored.mean()).square().sum()
    return max(0.0, float(means + real.trace + covariance.trace() - 2.0 * roots))


def frechet_half_width(features: Rows, total: Sums, groups: np.ndarray, real: RealImages) -> float:
    """Half the width of the 95 % interval of the Fréchet distance by the delete-a-group jackknife (see `jackknife_half_width`).

    It says how the distance would vary with other images of the same number, bias included, which `frechet_bias` measures.

    Args:
        features: (N, D).
        total: sums over them.
        groups: integers (N,) from 0, see `jackknife_groups`.
        real: the real images.
    """
    parts = (feature_sums(select_rows(features, np.flatnonzero(groups == group))) for group in range(groups.max() + 1))
    return jackknife_half_width([frechet_distance(real.normal, total.without(part)) for part in parts])


def frechet_bias(count: int, real: RealImages, rng: np.random.Generator) -> float:
    """Fréchet distance of as many real images from the other real images, which for ever more images would go to 0.

    A distance of a few images holds that much, whatever the images (Chong and Forsyth, CVPR 2020).

    Args:
        count: number of images to draw without replacement, 2 to half of the real images.
        real: the real images.
        rng: draws.
    """
    drawn = np.zeros(len(real.rows), bool)
    drawn[rng.choice(len(drawn), count, replace=False)] = True
    own, others = (feature_sums(select_rows(real.rows, np.flatnonzero(which))) for which in (drawn, ~drawn))
    return frechet_distance(normal(others), own)


def kernel_distance(features: Rows, real: RealImages, subsets: int, size: int, rng: np.random.Generator) -> tuple[float, float]:
    """Kernel distance: squared maximum mean discrepancy, mean over subsets (Bińkowski et al., ICLR 2018, section 4).

    Each subset's estimate is unbiased and may be below 0.

    Args:
        features: (N, D), N >= 2.
        real: at least 2 real images.
        subsets: number of subsets.
        size: images of a subset, reduced to the smaller set.
        rng: draws, each subset without replacement.

    Returns:
        The mean, and its variance by the choice of the subsets alone.
    """
    size = min(size, len(features), len(real.rows))

    def draw(rows: Rows) -> torch.Tensor:
        indices = np.sort(rng.choice(len(rows), size, replace=False))
        return next(block for _, block in pieces(select_rows(rows, indices), real.device, size))

    with _one_thread():
        values = np.array([unbiased_discrepancy(draw(real.rows), draw(features)) for _ in range(subsets)])
    return float(values.mean()), float(values.var(ddof=1) / subsets) if subsets > 1 else 0.0


def polynomial_kernel(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Kernel (x y / D + 1)^3 (N, M) of rows (N, D) and (M, D)."""
    return (first @ second.T).div_(first.shape[1]).add_(1.0).pow_(3)


def unbiased_discrepancy(first: torch.Tensor, second: torch.Tensor) -> float:
    """Squared maximum mean discrepancy of rows (N, D) and (M, D), at least 2 of each, by `polynomial_kernel`.

    The estimate without a row's kernel with itself (Gretton et al., JMLR 2012, lemma 6).
    """

    def mean_of_pairs(rows: torch.Tensor) -> torch.Tensor:
        kernel = polynomial_kernel(rows, rows)
        return (kernel.sum() - kernel.trace()) / (len(rows) * (len(rows) - 1))

    return float(mean_of_pairs(first) + mean_of_pairs(second) - 2.0 * polynomial_kernel(first, second).mean())


def kernel_half_width(features: Rows, groups: np.ndarray, real: RealImages, choice: float) -> float:
    """Half the width of the 95 % interval of the kernel distance.

    Subsets overlap, so that their spread says nothing of other images. Given the images, the mean over subsets scatters around
    the estimate from all pairs of images (it is an incomplete U-statistic: Blom, Biometrika 1976). The variance is therefore
    that of the estimate from all pairs, by the delete-a-group jackknife, and that of the choice of subsets.

    Args:
        features: (N, D).
        groups: integers (N,) from 0, see `jackknife_groups`.
        real: the real images.
        choice: variance by the choice of the subsets.
    """
    within, across = _kernel_sums(features, groups, real)
    counts = np.bincount(groups)
    left = len(features) - counts
    pairs = within.sum() - 2.0 * within.sum(axis=1) + np.diag(within)
    without = pairs / (left * (left - 1)) - 2.0 * (across.sum() - across) / (left * len(real.rows))
    return jackknife_half_width(without, choice)


def jackknife_groups(labels: np.ndarray, groups: int) -> np.ndarray:
    """Groups (N,) of images, as equal in size as can be, each with its share of every tissue.

    The images of a tissue are dealt in their order to one group after the other, those of the next tissue from there on.
    """
    dealt = np.empty(len(labels), np.int64)
    dealt[np.argsort(labels, kind="stable")] = np.arange(len(labels)) % groups
    return dealt


def jackknife_half_width(without: Sequence[float] | np.ndarray, more_variance: float = 0.0) -> float:
    """Half the width of a 95 % interval from estimates that leave out one of G groups each.

    The variance is (G - 1) / G times the sum of squares about their mean, the factor that of Student's distribution with G - 1
    degrees of freedom (Kott, Journal of Official Statistics 2001).
    """
    from scipy.stats import t

    values = np.asarray(without, np.float64)
    count = len(values)
    variance = (count - 1) / count * np.square(values - values.mean()).sum() + more_variance
    return float(t.ppf(0.975, count - 1) * np.sqrt(variance))


def in_real_balls(features: Rows, real: RealImages, size: int = BLOCK) -> tuple[np.ndarray, np.ndarray]:
    """Which images lie in the balls of real images, whose radius is the distance to the k-th nearest other real image.

    Precision is the share of images in any ball (Kynkäänniemi et al., NeurIPS 2019), density the mean number of balls that an
    image is in, divided by k, coverage the share of balls that hold an image (Naeem et al., ICML 2020).

    Args:
        features: (N, D).
        real: more than k real images.
        size: rows of a block.

    Returns:
        Number of balls (N,) that each image is in, and whether each ball holds an image, bool (M,).
    """
    import torch

    counts = torch.zeros(len(features), dtype=torch.int64, device=real.device)
    held = torch.zeros(len(real.rows), dtype=torch.bool, device=real.device)
    for here, block in pieces(features, real.device, size):
        for there, others in pieces(real.rows, real.device, size):
            inside = squared_distances(block, others) < TIE * real.radii[there]
            counts[here] += inside.sum(dim=1)
            held[there] |= inside.any(dim=0)
    return counts.cpu().numpy(), held.cpu().numpy()


def recall(features: Rows, real: RealImages, size: int = BLOCK) -> float:
    """Share of real images in the balls of the scored images (Kynkäänniemi et al., NeurIPS 2019).

    Args:
        features: (N, D) with N > k.
        real: the real images.
        size: rows of a block.
    """
    scored = RealImages(features, real.neighbours, real.device)
    return float(in_real_balls(real.rows, scored, size)[0].astype(bool).mean())


def bootstrap_mean(values: np.ndarray, labels: np.ndarray, rng: np.random.Generator, resamples: int) -> tuple[float, float]:
    """95 % percentile bootstrap interval of a mean (N,), stratified by tissue as `scores.bootstrap_macro_f1`.

    Where the values of each tissue are all equal, such as 1 when every image is in a ball, the interval has no width: nothing
    that could be drawn differs. It does not say that other images would give the same mean.
    """
    totals = np.zeros(resamples)
    for tissue in np.unique(labels):
        kinds, counts = np.unique(values[labels == tissue], return_counts=True)
        totals += rng.multinomial(counts.sum(), counts / counts.sum(), size=resamples) @ kinds
    low, high = np.quantile(totals / len(values), [0.025, 0.975])
    return float(low), float(high)


@dataclass(frozen=True)
class _Comparison:
    """A set of images beside real ones; labels where intervals are wanted."""

    features: Rows
    real: RealImages
    settings: Settings
    seed: tuple[int, int]
    labels: np.ndarray | None = None

    def rng(self, purpose: int) -> np.random.Generator:
        return np.random.default_rng((*self.seed, purpose))

    @cached_property
    def groups(self) -> np.ndarray | None:
        """Groups of the jackknife, where there are images for an interval."""
        if self.labels is None or len(self.labels) < self.settings.groups:
            return None
        return jackknife_groups(self.labels, self.settings.groups)

    def frechet(self) -> dict:
        few = min(len(self.features), len(self.real.rows))
        sums = feature_sums(self.features)
        distance = frechet_distance(self.real.normal, sums)
        scores = {"frechet_distance": distance, "frechet_full_rank": few > self.features.shape[1]}
        if self.groups is None:
            return scores
        half = frechet_half_width(self.features, sums, self.groups, self.real)
        return scores | _ends("frechet", max(0.0, distance - half), distance + half)

    def bias(self) -> dict:
        return {"frechet_bias": frechet_bias(len(self.features), self.real, self.rng(0))}

    def kernel(self) -> dict:
        subsets, size = self.settings.kernel_subsets, self.settings.kernel_subset_size
        value, choice = kernel_distance(self.features, self.real, subsets, size, self.rng(1))
        if self.groups is None:
            return {"kernel_distance": value}
        half = kernel_half_width(self.features, self.groups, self.real, choice)
        return {"kernel_distance": value, **_ends("kernel", value - half, value + half)}

    def balls(self) -> dict:
        counts, held = in_real_balls(self.features, self.real)
        values = {"precision": (counts > 0).astype(np.float64), "density": counts / self.real.neighbours}
        scores = {name: float(value.mean()) for name, value in values.items()} | {"coverage": float(held.mean())}
        if self.labels is None or self.groups is None:
            return scores
        for purpose, (name, value) in enumerate(values.items(), 2):
            scores |= _ends(name, *bootstrap_mean(value, self.labels, self.rng(purpose), self.settings.resamples))
        return scores

    def recall(self) -> dict:
        return {"recall": recall(self.features, self.real)}


def _realism(pair: _Comparison) -> dict:
    """Scores of one set, and why some are missing."""
    n, m, k = len(pair.features), len(pair.real.rows), pair.real.neighbours
    scores: dict = {"n_images": n, "n_reference": m}
    undefined: dict[str, str] = {}
    parts: tuple[tuple[tuple[str, ...], str, Callable[[], dict]], ...] = (
        (("frechet_distance",), _too_few(n, m, 2, 2), pair.frechet),
        (("frechet_bias",), _too_few(n, m, 2, 2 * n), pair.bias),
        (("kernel_distance",), _too_few(n, m, 2, 2), pair.kernel),
        (("precision", "density", "coverage"), _too_few(n, m, 1, k + 1) or _all_equal(pair.real), pair.balls),
        (("recall",), _too_few(n, m, k + 1, 1), pair.recall),
    )
    for names, fault, compute in parts:
        if fault:
            undefined |= dict.fromkeys(names, fault)
        else:
            scores |= compute()
    if pair.labels is not None:
        missing = [end for name in INTERVALS for end in (f"{name}_low", f"{name}_high") if end not in scores]
        few = _too_few(n, m, pair.settings.groups, 2)
        undefined |= {end: undefined.get(INTERVALS[end.rsplit("_", 1)[0]], few) for end in missing}
    return _rounded(scores) | ({"undefined": undefined} if undefined else {})


def _too_few(n: int, m: int, needed: int, needed_real: int) -> str:
    """Why n images and m real ones cannot be compared, or nothing."""
    for count, least, kind in ((n, needed, "images"), (m, needed_real, "real images")):
        if count < least:
            return f"no {kind}" if count == 0 else f"{kind}: {count}, at least {least} are needed"
    return ""


def _all_equal(real: RealImages) -> str:
    return "" if bool(real.radii.any()) else f"every real image has {real.neighbours} others with the same features"


def _ends(name: str, low: float, high: float) -> dict[str, float]:
    return {f"{name}_low": low, f"{name}_high": high}


def _rounded(scores: dict) -> dict:
    """Floats with as many digits as are written; kernel distances are small."""
    return {
        # adding 0 makes a rounded -0.0 an ordinary one
        name: round(value, KERNEL_DIGITS if name.startswith("kernel") else DIGITS) + 0.0 if isinstance(value, float) else value
        for name, value in scores.items()
    }


def _kernel_sums(features: Rows, groups: np.ndarray, real: RealImages) -> tuple[np.ndarray, np.ndarray]:
    """Sums of the kernel over pairs of different images by group (G, G), and over pairs of an image and a real one (G,)."""
    import torch

    member = torch.nn.functional.one_hot(torch.tensor(groups, device=real.device)).double()
    within = torch.zeros(member.shape[1], member.shape[1], dtype=torch.float64, device=real.device)
    across = torch.zeros(member.shape[1], dtype=torch.float64, device=real.device)
    for here, block in pieces(features, real.device):
        for there, others in pieces(features, real.device):
            if there.start > here.start:
                break
            sums = member[here].T @ _without_self(polynomial_kernel(block, others), here == there) @ member[there]
            within += sums if here == there else sums + sums.T
        for _, others in pieces(real.rows, real.device):
            across += member[here].T @ polynomial_kernel(block, others).sum(dim=1)
    return within.cpu().numpy(), across.cpu().numpy()


def _without_self(kernel: torch.Tensor, same: bool) -> torch.Tensor:
    return kernel.fill_diagonal_(0.0) if same else kernel


@contextmanager
def _one_thread() -> Iterator[None]:
    """Many small steps gain little from threads that wait for each other, and lose a hundredfold where others use the cores."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _checked(rows: Rows, labels: np.ndarray, name: str) -> np.ndarray:
    labels = np.asarray(labels)
    if len(rows.shape) != 2 or rows.shape[1] < 1:
        raise ValueError(f"{name}: shape {rows.shape}, expected (N, D)")
    if labels.shape != (len(rows),) or (labels.size and not np.issubdtype(labels.dtype, np.integer)):
        raise ValueError(f"{name}: {len(rows)} rows and labels {labels.dtype} {labels.shape}, expected one integer for each")
    return labels.astype(np.int64)


def _checked_settings(settings: Settings) -> Settings:
    least = Settings(kernel_subsets=1, kernel_subset_size=2, resamples=1, groups=3)
    for name, value, lowest in zip(Settings._fields, settings, least, strict=True):
        if value < lowest:
            raise ValueError(f"{name}: {value} is less than {lowest}")
    return settings
