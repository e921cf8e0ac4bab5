"""Progress bars on stderr, one look for all stages."""

from __future__ import annotations

from collections.abc import Iterable


def bar(steps: Iterable, what: str, total: int | None = None):
    """Wraps an iterable in a tqdm bar named `what`."""
    from tqdm import tqdm

    return tqdm(steps, desc=what, total=total, mininterval=0.5, dynamic_ncols=True)
