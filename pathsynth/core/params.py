"""Reads params.yaml and the files under configs/ that it selects, and validates one section at a time.

params.yaml holds two selectors and every LoRA configuration. `benchmark: phantom` selects `configs/benchmarks/phantom.yaml` and
`configs/prompts/phantom.yaml`; `lora: r16` selects the entry `loras.r16`. A stage validates only the sections that it reads,
so a mistake elsewhere, or a new option of a different stage, does not affect it. `python -m pathsynth check` validates all.

Every mistake is one line that names file, key, value and what is allowed.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, overload

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from pathsynth.core.errors import ParamsError, one_line

BENCHMARKS = Path("configs/benchmarks")
PROMPTS = Path("configs/prompts")
TOP_LEVEL_KEYS = ("seeds", "deterministic", "processes", "device", "benchmark", "lora", "lora_families", "loras")

PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
ShareBelowOne = Annotated[float, Field(ge=0, lt=1)]
MixedPrecision = Literal["no", "bf16", "fp16"]
WeightDtype = Literal["fp32", "bf16", "fp16"]
Device = Literal["auto", "cuda", "cpu"]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{8,64}$")]
Md5 = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Revision = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]

NAME = re.compile(r"[A-Za-z0-9_-]+")
# YAML aliases let a small file expand to any number of values.
MAX_VALUES = 100_000
MAX_SHOWN = 200
AnySection = TypeVar("AnySection")
# Fields that are a union of sections, and the key whose value selects one. pydantic adds that value to the location of an
# error, although the file has no such key.
DISCRIMINATORS = {"dataset": "source", "features": "extractor"}


class Section(BaseModel):
    """One section of a parameter file: no unknown keys, no silent conversions, immutable.

    A section may be written as a list of mappings, which are merged in order: DVC shows a list as one column of
    `dvc exp show`, and a mapping as one column per value.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _merge_list(cls, value: Any) -> Any:
        return merge_list(value)


class HubModel(Section):
    """Weights in the layout of the Hugging Face hub.

    With a `revision` the name is a repository of the hub, without one a local folder, relative to params.yaml. A branch may
    change under the same name, and the scores with it, so a revision is a commit's 40 hexadecimal digits.
    """

    pretrained_model_name_or_path: Annotated[str, Field(min_length=1)]
    revision: Revision | None = None

    @model_validator(mode="after")
    def _check_repository(self) -> HubModel:
        name = self.pretrained_model_name_or_path
        if self.revision and not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
            raise ValueError(f"{name!r} is not a hub repository (OWNER/NAME); for a local folder use revision: null")
        return self


Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Seeds(Section):
    """Seeds by purpose, so that another training keeps data, classifiers and noise.

    Attributes:
        data: phantoms and splits that are drawn.
        observers: gate, judge, colour control, usefulness, and all resampling of the evaluation.
        training: the LoRA.
        drawing: noise of generated images.
    """

    data: Seed
    observers: Seed
    training: Seed
    drawing: Seed


@dataclass(frozen=True)
class Params:
    """params.yaml with the benchmark and the LoRA configuration that it selects.

    Attributes:
        path: the parameter file.
        seeds: seeds by purpose.
        deterministic: whether a GPU is restricted to kernels that sum in a fixed order.
        processes: number of processes on this machine for LoRA training and generation.
        device: the GPU if there is one (`auto`), a GPU or an error (`cuda`), or no GPU (`cpu`).
        benchmark_name: the selected benchmark.
        lora_name: the selected LoRA configuration.
        lora: the resolved values of that configuration.
    """

    path: Path
    seeds: Seeds
    deterministic: bool
    processes: int
    device: Device
    benchmark_name: str
    lora_name: str
    lora: Mapping[str, Any]

    @property
    def folder(self) -> Path:
        """The folder that relative paths in the parameters start from."""
        return self.path.parent

    @property
    def benchmark_path(self) -> Path:
        """The file of the selected benchmark."""
        return self.folder / BENCHMARKS / f"{self.benchmark_name}.yaml"

    @property
    def prompts_path(self) -> Path:
        """The file of the selected benchmark's prompts."""
        return self.folder / PROMPTS / f"{self.benchmark_name}.yaml"

    @cached_property
    def benchmark(self) -> Mapping[str, Any]:
        """The benchmark's values as they stand in its file."""
        return read_yaml(self.benchmark_path)

    @cached_property
    def prompts(self) -> Mapping[str, Any]:
        """The prompts as they stand in their file."""
        return read_yaml(self.prompts_path)

    @overload
    def section(self, key: str, kind: type[AnySection]) -> AnySection: ...
    @overload
    def section(self, key: str, kind: Any) -> Any: ...
    def section(self, key: str, kind: Any) -> Any:
        """Validates one section.

        Args:
            key: `lora`, `prompts`, or a dotted key of the benchmark's file, such as `classifiers.gate`; omit list indices;
                lists of mappings are merged.
            kind: the section's class, or an annotated union of such classes.

        Raises:
            ParamsError: the section is missing or invalid.
        """
        if key == "lora":
            return validate(self.path, f"loras.{self.lora_name}", kind, self.lora)
        if key == "prompts":
            return validate(self.prompts_path, "", kind, self.prompts)
        value: Any = self.benchmark
        for part in key.split("."):
            if not isinstance(value, Mapping) or part not in value:
                raise ParamsError(self.benchmark_path, key, "missing")
            value = merge_list(value[part])
        return validate(self.benchmark_path, key, kind, value)

    def values(self) -> dict[str, Any]:
        """Returns all selected values as plain data, without `processes` and `device`, which are not recorded with results."""
        return {
            "seeds": self.seeds.model_dump(),
            "deterministic": self.deterministic,
            "benchmark_name": self.benchmark_name,
            "lora_name": self.lora_name,
            "benchmark": {**self.benchmark, "prompts": self.prompts},
            "lora": self.lora,
        }

    def fingerprint(self) -> str:
        """Returns a hash of `values`, 16 hexadecimal digits; runs with equal fingerprints have equal parameters."""
        return hashlib.sha256(json.dumps(self.values(), sort_keys=True, default=str).encode()).hexdigest()[:16]


def load_params(path: Path) -> Params:
    """Reads params.yaml and resolves the selected LoRA configuration.

    Raises:
        ParamsError: one line: file, key, value, what is allowed.
    """
    path = Path(path)
    tree = read_yaml(path)
    for key in [*tree, *TOP_LEVEL_KEYS]:
        if key not in TOP_LEVEL_KEYS:
            raise ParamsError(path, key, f"unknown key; allowed: {', '.join(TOP_LEVEL_KEYS)}")
        if key not in tree:
            raise ParamsError(path, key, "missing")
    benchmarks = config_names(path.parent / BENCHMARKS)
    check_selected(path, "benchmark", tree["benchmark"], benchmarks, f"a file in {BENCHMARKS.as_posix()}")
    check_selected(path, "lora", tree["lora"], lora_names(path, tree), "an entry of loras")
    return Params(
        path=path,
        seeds=validate(path, "seeds", Seeds, tree["seeds"]),
        deterministic=validate(path, "deterministic", Annotated[bool, Field(strict=True)], tree["deterministic"]),
        processes=validate(path, "processes", Annotated[int, Field(strict=True, ge=1, le=1024)], tree["processes"]),
        device=validate(path, "device", Device, tree["device"]),
        benchmark_name=tree["benchmark"],
        lora_name=tree["lora"],
        lora=resolve_lora(path, tree, tree["lora"]),
    )


def describe_lora(name: str, snapshot: int | None) -> str:
    """Names a LoRA, or its snapshot after an optimizer step, for cards and pages."""
    return name if snapshot is None else f"{name} after {snapshot} steps"


def lora_names(path: Path, tree: Mapping[str, Any]) -> list[str]:
    """Returns the names of all LoRA configurations.

    Raises:
        ParamsError: the table or a name is invalid.
    """
    for table in ("lora_families", "loras"):
        for name in _table(path, tree, table):
            check_name(path, table, name)
    return list(_table(path, tree, "loras"))


def resolve_lora(path: Path, tree: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Resolves a LoRA configuration: merges its own values over those of its families.

    An entry is a list of layers, in which later ones win. A layer is the name of an entry of `lora_families`, or a mapping of
    values: `r8: [tiny, {adapter: {rank: 8}}]`. A single mapping is a list of one layer.

    Raises:
        ParamsError: the entry is not such a list, or names a family that does not exist.
    """
    return _resolve(path, tree, ("loras", name), ())


def _resolve(path: Path, tree: Mapping[str, Any], entry: tuple[str, str], above: tuple[str, ...]) -> dict[str, Any]:
    table, name = entry
    families, layers = _table(path, tree, "lora_families"), _table(path, tree, table)[name]
    layers = [layers] if isinstance(layers, Mapping) else layers
    if not isinstance(layers, list) or not all(isinstance(layer, str | Mapping) for layer in layers):
        problem = f"{show(layers)}: must be a list of family names and mappings, such as [tiny, {{adapter: {{rank: 8}}}}]"
        raise ParamsError(path, f"{table}.{name}", problem)
    resolved: dict[str, Any] = {}
    for layer in layers:
        if isinstance(layer, str):
            if layer not in families or layer in above:
                allowed = ", ".join(name for name in families if name not in above)
                problem = f"{show(layer)} is not an entry of lora_families; allowed: {allowed}"
                raise ParamsError(path, f"{table}.{name}", problem)
            layer = _resolve(path, tree, ("lora_families", layer), (*above, layer))
        resolved = merge(resolved, layer)
    return resolved


def _table(path: Path, tree: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Returns a table of named entries, which may be written as a list of mappings."""
    table = merge_list(tree.get(key))
    if not isinstance(table, Mapping):
        raise ParamsError(path, key, "must map names to entries")
    return table


def merge(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Merges two mappings recursively; where both have a value, the second wins."""
    merged = dict(copy.deepcopy(first))
    for key, value in second.items():
        current = merged.get(key)
        merged[key] = (
            merge(current, value) if isinstance(current, Mapping) and isinstance(value, Mapping) else copy.deepcopy(value)
        )
    return merged


def merge_list(value: Any) -> Any:
    """Merges a list of mappings into one mapping, see `Section`; returns any other value unchanged."""
    if not isinstance(value, list) or not value or not all(isinstance(part, Mapping) for part in value):
        return value
    merged: dict[str, Any] = {}
    for part in value:
        merged = merge(merged, part)
    return merged


def config_names(folder: Path) -> list[str]:
    """Returns the sorted names of the .yaml files in a folder, without suffix."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def check_selected(path: Path, key: str, name: Any, names: list[str], what: str) -> None:
    """Raises a ParamsError for a selector whose value does not exist or is not a valid name."""
    if not isinstance(name, str) or name not in names:
        raise ParamsError(path, key, f"{show(name)} is not {what}; allowed: {', '.join(names)}")
    check_name(path, key, name)


def check_name(path: Path, key: str, name: Any) -> None:
    """Raises a ParamsError for a configuration name that does not work in DVC, file names or tables."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        reason = "DVC splits names at dots, and would report a missing parameter; " if "." in str(name) else ""
        raise ParamsError(path, key, f"{show(name)}: {reason}allowed in names: letters, digits, '_' and '-'")


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads a YAML file as `parse_yaml` does.

    Raises:
        ParamsError: the file is missing, is not YAML or does not hold a mapping.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ParamsError(path, "", f"cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ParamsError(path, "", f"is not UTF-8 text; save it as UTF-8 ({one_line(error)})") from error
    return parse_yaml(text, path)


def parse_yaml(text: str, path: object) -> dict[str, Any]:
    """Parses a YAML 1.2 mapping as DVC does (`1e-4` is a number), without tags that build objects.

    Raises:
        ParamsError: the text is not YAML or does not hold a mapping; the message names `path`.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        tree = YAML(typ="safe", pure=True).load(text)
    except (YAMLError, ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError) as error:
        # malformed input makes the parser raise any of these
        raise ParamsError(path, "", f"is not YAML: {one_line(error)}") from error
    if not isinstance(tree, dict):
        raise ParamsError(path, "", "must hold a mapping of keys to values")
    if not _count_values(tree, {}) <= MAX_VALUES:
        raise ParamsError(path, "", f"contains itself, or more than {MAX_VALUES} values once its aliases are expanded")
    return tree


def _count_values(tree: Any, counts: dict[int, float]) -> float:
    """Counts values with aliases expanded; infinite for a tree that contains itself."""
    if not isinstance(tree, dict | list | set | tuple):
        return 1
    if id(tree) not in counts:
        counts[id(tree)] = math.inf
        parts = [*tree.keys(), *tree.values()] if isinstance(tree, dict) else tree
        counts[id(tree)] = sum(_count_values(part, counts) for part in parts)
    return counts[id(tree)]


@overload
def validate(path: object, key: str, kind: type[AnySection], value: object) -> AnySection: ...
@overload
def validate(path: object, key: str, kind: Any, value: object) -> Any: ...
def validate(path: object, key: str, kind: Any, value: object) -> Any:
    """Builds a section, or any other type that pydantic supports, from plain values.

    Args:
        path: the file, for the error.
        key: dotted key of `value` in the file; empty for the whole file.
        kind: the class.
        value: plain data.

    Raises:
        ParamsError: names the first error and counts the others.
    """
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        # a misspelt key is both unknown and missing; the typo is what the user has to see
        first = min(error.errors(), key=lambda fault: fault["type"] != "extra_forbidden")
        parts: list[str] = []
        before: int | str = key.rpartition(".")[2]
        for part in first["loc"]:
            # if the tag itself is invalid, pydantic adds none
            if before not in DISCRIMINATORS or first["type"].startswith("union_tag"):
                parts.append(str(part))
            before = part
        where = ".".join([*([key] if key else []), *parts])
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise ParamsError(path, where, _describe(kind, first) + more) from error


def _describe(kind: Any, fault: Mapping[str, Any]) -> str:
    """Describes a validation error."""
    if fault["type"] == "extra_forbidden":
        return f"unknown key; allowed: {', '.join(_keys_at(kind, fault['loc'][:-1]))}"
    if fault["type"] == "missing":
        return "missing"
    message = fault["msg"].removeprefix("Value error, ")
    given = fault["input"]
    shown = "" if isinstance(given, dict | Section) else f"{show(given)}: "
    return shown + message[0].lower() + message[1:]


def show(value: object) -> str:
    """Returns the repr of a value, cut to MAX_SHOWN characters."""
    try:
        text = repr(value)
    except ValueError:
        # Python refuses to print integers of more than 4300 digits
        return "a number of thousands of digits"
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 3]}..."


def _keys_at(kind: Any, location: tuple) -> list[str]:
    """Returns the keys allowed at `location`, by walking the field types; in a union, the tag selects the section."""
    kinds = list(_sections_in(kind))
    for part in location:
        if isinstance(part, int):
            continue
        fields = [kind.model_fields[part].annotation for kind in kinds if part in kind.model_fields]
        if fields:
            kinds = list(_sections_in(fields[0]))
        else:
            kinds = [
                kind for kind in kinds if any(part in get_args(_annotation(kind, name)) for name in DISCRIMINATORS.values())
            ]
    return list(kinds[0].model_fields)


def _annotation(section: type[Section], name: str) -> Any:
    return section.model_fields[name].annotation if name in section.model_fields else None


def _sections_in(annotation: Any) -> Iterator[type[Section]]:
    """Yields the sections that a type consists of: itself, or the members of a union, list or annotation."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for part in get_args(annotation):
        yield from _sections_in(part)
