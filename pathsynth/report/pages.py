"""Pages of one file: templates, pictures as data, and how numbers are written in them."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pathsynth.core import io as files
from pathsynth.core.errors import DataError, one_line

if TYPE_CHECKING:
    from jinja2 import Environment

NOTHING = "-"
MINUTE, HOUR = 60, 3600


@dataclass(frozen=True)
class Picture:
    """A PNG in the page: its bytes as a `data:` address, and its size in pixels."""

    source: str
    width: int
    height: int


@dataclass(frozen=True)
class Chart:
    """A drawing of `pathsynth.report.charts`, and the words below it."""

    svg: str
    caption: str


def render(template: str, **values: Any) -> str:
    """Renders a template of the package; every value is escaped, and a name that is not given is an error."""
    return _environment().get_template(template).render(**values)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("pathsynth"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        decimals=decimals, percent=percent, significant=significant, whole=whole, seconds=seconds, probability=probability
    )
    environment.globals["interval"] = interval
    return environment


def read_picture(path: Path) -> Picture:
    """Reads a PNG file for a page.

    Raises:
        DataError: for a file that is missing or damaged.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(path, f"could not be read: {files.reason(error)}") from error
    return picture(path, data)


def picture(name: object, data: bytes) -> Picture:
    """A picture from the bytes of a PNG.

    Raises:
        DataError: for bytes that are no whole PNG, naming `name`.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            image.load()
            width, height = image.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(name, f"is not a whole PNG: {one_line(error)}") from error
    return Picture("data:image/png;base64," + base64.b64encode(data).decode("ascii"), width, height)


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested values as dotted keys and texts; of absolute paths the last name."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple):
            yield f"{prefix}{key}", ", ".join(str(item) for item in value)
        elif isinstance(value, str):
            yield f"{prefix}{key}", files.shown_path(value)
        else:
            yield f"{prefix}{key}", "none" if value is None else str(value)


def decimals(value: float | None, digits: int = 3) -> str:
    """A number with that many digits after the point, or a dash."""
    return NOTHING if value is None else f"{value:.{digits}f}"


def percent(value: float | None, digits: int = 1) -> str:
    """A share in percent, or a dash."""
    return NOTHING if value is None else f"{100 * value:.{digits}f} %"


def significant(value: float | None, digits: int = 3) -> str:
    """A number of unknown size with that many digits that count, or a dash."""
    if value is None:
        return NOTHING
    return f"{value:,.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}"


def whole(value: float | None) -> str:
    """A count with its thousands set apart, or a dash."""
    return NOTHING if value is None else f"{value:,.0f}"


def seconds(value: float | None) -> str:
    """A time in the unit that it fills, or a dash."""
    if value is None:
        return NOTHING
    if value < MINUTE:
        return f"{value:.2f} s" if value < 10 else f"{value:.0f} s"
    return f"{value / MINUTE:.1f} min" if value < HOUR else f"{value / HOUR:.1f} h"


def size(value: float | None) -> str:
    """A number of bytes in kB or MB, or a dash."""
    if value is None:
        return NOTHING
    return f"{value / 1e6:.1f} MB" if value >= 1e6 else f"{value / 1e3:.0f} kB"


def probability(value: float | None) -> str:
    """A p-value, or a dash; none is written as 0, which it never is."""
    if value is None:
        return NOTHING
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"


def interval(low: float | None, high: float | None, count: int | None = None) -> str:
    """An interval in words, or nothing.

    One without width says nothing of what other images would score: where all of `count` images were right, or none, that is
    said instead.

    Args:
        low: its lower end, in [0, 1] where `count` is given.
        high: its upper end.
        count: how many images were scored, where the score is 1 if all are right and 0 if none is.
    """
    if low is None or high is None:
        return ""
    if low == high:
        return {1.0: f"all of {count:,}", 0.0: f"none of {count:,}"}.get(low, "") if count else ""
    digits = next((more for more in (2, 3, 4) if f"{low:.{more}f}" != f"{high:.{more}f}"), 5)
    return f"{low:.{digits}f} to {high:.{digits}f}"
