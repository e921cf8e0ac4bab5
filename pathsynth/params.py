"""Reads params.yaml: two selectors over named entries, validated as `pathsynth.settings` describes them.

`load_params` reads the file, follows the selectors `benchmark` and `lora`, and validates the two selected entries. What is
wrong is one line that names file, key, value and what is allowed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import ValidationError

from pathsynth.errors import ParamsError, one_line
from pathsynth.settings import Benchmark, LoraSettings, Params, Section

NAME = re.compile(r"[A-Za-z0-9_.-]+")
# Aliases let a small file stand for any number of values.
MOST_VALUES = 100_000
SHOWN = 200
AnySection = TypeVar("AnySection", bound=Section)
# Fields that are one of several sections, picked by the value of a key; pydantic puts that value into the location of a fault,
# where the file has no key.
DISCRIMINATORS = {"dataset": "source", "features": "extractor"}


def load_params(path: Path) -> Params:
    """Reads a parameter file and validates the selected entries.

    Raises:
        ParamsError: one line: file, key, value, what is allowed.
    """
    tree = read_yaml(path)
    expected = ["seed", "deterministic", "processes", "benchmark", "lora", "benchmarks", "loras"]
    for key in [*tree, *expected]:
        if key not in expected:
            raise ParamsError(path, key, f"unknown key; allowed: {', '.join(expected)}")
        if key not in tree:
            raise ParamsError(path, key, "missing")
    benchmark = _select(path, tree, "benchmark", "benchmarks")
    lora = _select(path, tree, "lora", "loras")
    return Params(
        seed=_whole(path, "seed", tree["seed"], 0, 2**32 - 1),
        deterministic=_switch(path, "deterministic", tree["deterministic"]),
        processes=_whole(path, "processes", tree["processes"], 1, 1024),
        benchmark_name=tree["benchmark"],
        lora_name=tree["lora"],
        benchmark=validate(path, f"benchmarks.{tree['benchmark']}", Benchmark, benchmark),
        lora=validate(path, f"loras.{tree['lora']}", LoraSettings, lora),
    )


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads a YAML 1.2 mapping, as DVC does (there `1e-4` is a number), without tags that build objects."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        tree = YAML(typ="safe", pure=True).load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ParamsError(path, "file", f"cannot be read: {error.strerror}") from error
    except (YAMLError, ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError) as error:
        # what is no YAML ends in the parser as any of these
        raise ParamsError(path, "file", f"is not YAML: {one_line(error)}") from error
    if not isinstance(tree, dict):
        raise ParamsError(path, "file", "must hold a mapping of keys to values")
    if not _values(tree, {}) <= MOST_VALUES:
        raise ParamsError(path, "file", f"holds itself, or more than {MOST_VALUES} values once its aliases are written out")
    return tree


def _values(tree: Any, known: dict[int, float]) -> float:
    """How many values a tree has where each alias counts as what it stands for; infinitely many for one that holds itself."""
    if not isinstance(tree, dict | list | set | tuple):
        return 1
    if id(tree) not in known:
        known[id(tree)] = math.inf
        parts = [*tree.keys(), *tree.values()] if isinstance(tree, dict) else tree
        known[id(tree)] = sum(_values(part, known) for part in parts)
    return known[id(tree)]


def validate(path: object, key: str, section: type[AnySection], value: object) -> AnySection:
    """Builds `section` from plain values; the first fault becomes a ParamsError under `key`."""
    try:
        return section.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        parts = [part for before, part in zip(("", *first["loc"]), first["loc"], strict=False) if before not in DISCRIMINATORS]
        # without a usable value there is no tag to leave out
        if first["type"].startswith("union_tag"):
            parts = list(first["loc"])
        where = ".".join([key, *map(str, parts)])
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise ParamsError(path, where, _fault(section, first) + more) from error


def _fault(section: type[Section], fault: Mapping[str, Any]) -> str:
    if fault["type"] == "extra_forbidden":
        return f"unknown key; allowed: {', '.join(_keys_at(section, fault['loc'][:-1]))}"
    if fault["type"] == "missing":
        return "missing"
    message = fault["msg"].removeprefix("Value error, ")
    given = fault["input"]
    shown = "" if isinstance(given, dict | Section) else f"{_shown(given)}: "
    return shown + message[0].lower() + message[1:]


def _shown(value: object) -> str:
    """A value as Python writes it, in at most SHOWN characters."""
    try:
        text = repr(value)
    except ValueError:
        # Python writes no number of more than 4300 digits
        return "a number of thousands of digits"
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def _keys_at(section: type[Section], location: tuple) -> list[str]:
    """The keys allowed at `location`, found by walking the field types; in a union, the tag picks the section."""
    kinds: list[type[Section]] = [section]
    for part in location:
        if isinstance(part, int):
            continue
        fields = [kind.model_fields[part].annotation for kind in kinds if part in kind.model_fields]
        if fields:
            kinds = list(_sections_in(fields[0]))
        else:
            kinds = [kind for kind in kinds if any(part in get_args(_field(kind, name)) for name in DISCRIMINATORS.values())]
    return list(kinds[0].model_fields)


def _field(section: type[Section], name: str) -> Any:
    return section.model_fields[name].annotation if name in section.model_fields else None


def _sections_in(annotation: Any) -> Iterator[type[Section]]:
    """The sections that a field's type is made of: itself, or the members of a union, a list, an annotation."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for part in get_args(annotation):
        yield from _sections_in(part)


def _select(path: Path, tree: dict[str, Any], selector: str, table: str) -> object:
    name, entries = tree[selector], tree[table]
    if not isinstance(entries, dict) or not entries:
        raise ParamsError(path, table, "must map names to entries")
    if not isinstance(name, str) or name not in entries:
        raise ParamsError(path, selector, f"{_shown(name)} is not an entry of {table}; allowed: {', '.join(map(str, entries))}")
    if not NAME.fullmatch(name):
        raise ParamsError(
            path, selector, f"{_shown(name)}: names have letters, digits, '_', '-' and '.' only, as they name files and rows"
        )
    return entries[name]


def _switch(path: Path, key: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise ParamsError(path, key, f"{_shown(value)}: must be true or false")
    return value


def _whole(path: Path, key: str, value: object, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ParamsError(path, key, f"{_shown(value)}: must be a whole number from {least} to {most}")
    return value
