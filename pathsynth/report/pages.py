"""Self-contained HTML pages: templates, embedded images and number formats."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pathsynth.core.errors import DataError
from pathsynth.core.io import read_bytes

if TYPE_CHECKING:
    from jinja2 import Environment
    from PIL.Image import Image

PACKAGE = "pathsynth.report"
MISSING = "-"
MINUTE, HOUR = 60, 3600


@dataclass(frozen=True)
class Picture:
    """A PNG as a `data:` URL, and its size in pixels."""

    source: str
    width: int
    height: int


@dataclass(frozen=True)
class Chart:
    """An <svg> element of `pathsynth.report.charts`, and its caption."""

    svg: str
    caption: str


def render(template: str, package: str = PACKAGE, **values: Any) -> str:
    """Renders a template of a package, which may extend and include those of the report.

    Values are escaped, and an undefined name is an error.
    """
    return _environment(package).get_template(template).render(**values)


@cache
def _environment(package: str) -> Environment:
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=ChoiceLoader([PackageLoader(name) for name in dict.fromkeys((package, PACKAGE))]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(decimals=decimals, percent=percent, significant=significant, whole=whole)
    environment.globals["interval"] = interval
    return environment


def read_picture(path: Path) -> Picture:
    """Reads a PNG file for a page.

    Raises:
        DataError: the file is missing, damaged or not a PNG.
    """
    return embed_png(path, read_bytes(path))


def embed_image(image: Image) -> Picture:
    """Embeds an image as a PNG."""
    with io.BytesIO() as buffer:
        image.save(buffer, format="PNG", optimize=True)
        return _to_picture(buffer.getvalue(), *image.size)


def embed_png(name: object, data: bytes) -> Picture:
    """Embeds the bytes of a PNG after decoding them completely.

    Raises:
        DataError: the data are damaged or not a PNG; the message names `name`.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            image.load()
            size = image.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(name, "is not a PNG file, or it is damaged") from error
    return _to_picture(data, *size)


def _to_picture(data: bytes, width: int, height: int) -> Picture:
    return Picture("data:image/png;base64," + base64.b64encode(data).decode("ascii"), width, height)


def decimals(value: float | None, digits: int = 3) -> str:
    """Formats a number with a fixed number of decimals, or as a dash for None."""
    return MISSING if value is None else f"{value:.{digits}f}"


def signed(value: float) -> str:
    """Formats a difference with its sign and three decimals."""
    return f"{value:+.3f}"


def percent(value: float | None, digits: int = 1) -> str:
    """Formats a share as a percentage, or as a dash for None."""
    return MISSING if value is None else f"{100 * value:.{digits}f} %"


def significant(value: float | None, digits: int = 3) -> str:
    """Formats a number with that many significant digits, or as a dash for None."""
    if value is None:
        return MISSING
    return f"{value:,.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}"


def whole(value: float | None) -> str:
    """Formats a count with thousands separators, or as a dash for None."""
    return MISSING if value is None else f"{value:,.0f}"


def seconds(value: float | None) -> str:
    """Formats a duration in seconds, minutes or hours, or as a dash for None."""
    if value is None:
        return MISSING
    if value < MINUTE:
        return f"{value:.2f} s" if value < 10 else f"{value:.0f} s"
    return f"{value / MINUTE:.1f} min" if value < HOUR else f"{value / HOUR:.1f} h"


def size(value: float | None) -> str:
    """Formats a number of bytes in kB or MB, or as a dash for None."""
    if value is None:
        return MISSING
    return f"{value / 1e6:.1f} MB" if value >= 1e6 else f"{value / 1e3:.0f} kB"


def probability(value: float | None) -> str:
    """Formats a p-value, never as 0, or as a dash for None."""
    if value is None:
        return MISSING
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"


def interval(low: float | None, high: float | None, count: int | None = None) -> str:
    """Formats an interval, or returns "" for one that is unknown or has zero width.

    A bootstrap of scores that are all 1 or all 0 has zero width, which does not mean certainty, so the count is given instead.

    Args:
        low: lower end, in [0, 1] where `count` is given.
        high: upper end.
        count: number of scored images, if the score is 1 when all are correct and 0 when none is.
    """
    if low is None or high is None:
        return ""
    if low == high:
        return {1.0: f"all of {count:,}", 0.0: f"none of {count:,}"}.get(low, "") if count else ""
    digits = next((more for more in (2, 3, 4) if f"{low:.{more}f}" != f"{high:.{more}f}"), 5)
    return f"{low:.{digits}f} to {high:.{digits}f}"
