"""Distances between many rows, a block against a block, so that memory does not grow with their number."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from pathsynth.core.rows import Rows

if TYPE_CHECKING:
    import torch

BLOCK = 1024
# Squared distances come from differences of large sums: what is below this share of these sums is rounding, also after products
# of very many terms, and the rows are the same.
SAME = 1e-12


def pieces(rows: Rows, device: str = "cpu", size: int = BLOCK) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yields where a block of rows stands, and the block as float64 (n, D) on a device.

    Raises:
        ValueError: for a number that is not finite.
    """
    for start in range(0, len(rows), size):
        block = doubles(rows[start : start + size], start, device)
        yield slice(start, start + len(block)), block


def doubles(block: np.ndarray, start: int = 0, device: str = "cpu") -> torch.Tensor:
    """Rows (n, ...) as float64 (n, D) on a device.

    Args:
        block: the rows.
        start: where they begin among all rows, for the message.
        device: where they go.

    Raises:
        ValueError: for a number that is not finite.
    """
    import torch

    block = np.asarray(block, np.float64)
    if not np.isfinite(block).all():
        raise ValueError(f"rows {start} to {start + len(block) - 1}: some numbers are not finite")
    return torch.tensor(block.reshape(len(block), -1), device=device)


def squared_distances(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Squared euclidean distances (N, M) of rows (N, D) and (M, D), by one matrix product; of equal rows exactly 0."""
    lengths = first.square().sum(dim=1)[:, None] + second.square().sum(dim=1)
    squared = lengths - 2.0 * first @ second.T
    return squared.masked_fill_(squared <= SAME * lengths, 0.0)


def squared_radii(rows: Rows, neighbours: int, device: str = "cpu", size: int = BLOCK) -> torch.Tensor:
    """Squared distance of each row (N, D) to its k-th nearest among the others.

    Args:
        rows: (N, D) with N > `neighbours`.
        neighbours: k, at least 1.
        device: where the distances are computed.
        size: rows of a block.

    Returns:
        float64 (N,) on the device.

    Raises:
        ValueError: for too few rows.
    """
    import torch

    if len(rows) <= neighbours:
        raise ValueError(f"{len(rows)} rows have no neighbour number {neighbours} each")
    radii = torch.empty(len(rows), dtype=torch.float64, device=device)
    for here, block in pieces(rows, device, size):
        nearest = torch.empty(len(block), 0, dtype=torch.float64, device=device)
        for _, others in pieces(rows, device, size):
            both = torch.cat([nearest, squared_distances(block, others)], dim=1)
            # one more than k, as each row is its own nearest
            nearest = both.topk(min(neighbours + 1, both.shape[1]), dim=1, largest=False).values
        radii[here] = nearest.amax(dim=1)
    return radii
