"""Progress bars on stderr, one look for all stages."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable


def close_bars() -> None:
    """Ends the lines of all bars that are shown, so that what is said next has a line of its own."""
    if "tqdm" in sys.modules:
        from tqdm import tqdm

        for shown in list(getattr(tqdm, "_instances", ())):
            shown.close()


def bar(steps: Iterable | None, what: str, total: int | None = None, *, done: int = 0, hidden: bool = False, unit: str = "it"):
    """Wraps an iterable in a tqdm bar named `what`; unit "B" counts bytes, and None is for bars that are moved by hand.

    `done` of the total were done by an earlier run. Of several processes that share a stage only the first one shows it.
    """
    from tqdm import tqdm

    scaled = {"unit_scale": True, "unit_divisor": 1000} if unit == "B" else {}
    hidden = hidden or os.environ.get("RANK", "0") != "0"
    look = {"mininterval": 0.5, "dynamic_ncols": True, "disable": hidden, "unit": unit, **scaled}
    return tqdm(steps, desc=what, total=total, initial=done, **look)
