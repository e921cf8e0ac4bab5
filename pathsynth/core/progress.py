"""Progress bars on stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable


def progress_bar(
    steps: Iterable | None, what: str, total: int | None = None, *, done: int = 0, hidden: bool = False, unit: str = "it"
):
    """Wraps an iterable in a tqdm bar, which only the main process shows.

    Args:
        steps: the iterable; None for a bar that is updated by hand.
        what: label of the bar.
        total: number of steps, if `steps` has no length.
        done: steps that an earlier run has finished.
        hidden: whether to show no bar.
        unit: unit of a step; "B" counts bytes.
    """
    from tqdm import tqdm

    scale = {"unit_scale": True, "unit_divisor": 1000} if unit == "B" else {}
    hidden = hidden or os.environ.get("RANK", "0") != "0"
    options = {"mininterval": 0.5, "dynamic_ncols": True, "disable": hidden, "unit": unit, **scale}
    return tqdm(steps, desc=what, total=total, initial=done, **options)


def close_bars() -> None:
    """Ends the lines of all open bars, so that a message starts on its own line."""
    if "tqdm" in sys.modules:
        for open_bar in list(getattr(sys.modules["tqdm"].tqdm, "_instances", ())):
            open_bar.close()
