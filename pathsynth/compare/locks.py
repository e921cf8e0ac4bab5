"""What a dvc.lock says of the run that wrote it: with which params, by which code, from which images."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

from pathsynth.core.metric_files import get_nested

# The stages whose params decide what metrics/evaluation.json holds; what the others depend on, these do too.
MAKERS = ("train_classifier@gate", "train_classifier@judge", "train_lora", "generate_filtered", "evaluate")
CODE = ("pathsynth/", "stages/", "base/")
IMAGES = "data/generated"


def scored_by_its_params(params: dict[str, Any], lock: bytes | None) -> bool:
    """Whether a revision's params could have made its scores, by what dvc.lock says that the stages ran with.

    After `dvc exp run -S benchmark=other prepare` the scores in the working tree are still those of the commit before.

    Args:
        params: as in a row of `experiments`.
        lock: bytes of the revision's dvc.lock, or None.

    Returns:
        True also where there is nothing to judge by: no lock, or one of a commit that recorded no params of a benchmark.
    """
    stages = _locked(lock)
    recorded = [get_nested(stages, (stage, "params", "params.yaml")) or {} for stage in MAKERS]
    if not any(key.startswith("benchmarks.") for key in recorded[-1]):
        return True
    return all(_value(params, key) == value for of_stage in recorded for key, value in of_stage.items())


def code_of(lock: bytes | None) -> dict[str, str]:
    """Checksums, by path, of the code and the base that a revision's scores were made with."""
    stages = _locked(lock)
    return {path: md5 for stage in MAKERS for path, md5 in _checksums(stages, stage, "deps") if path.startswith(CODE)}


def usefulness_is_its_own(lock: bytes | None) -> bool:
    """Whether classifiers learnt from the images that the same run has drawn; after `dvc repro evaluate` they may not have."""
    stages = _locked(lock)
    learnt_from = dict(_checksums(stages, "measure_usefulness", "deps")).get(IMAGES)
    return learnt_from == dict(_checksums(stages, "generate_filtered", "outs")).get(IMAGES)


def _checksums(stages: Mapping[str, Any], stage: str, kind: str) -> Iterator[tuple[str, str]]:
    entries = get_nested(stages, (stage, kind))
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(path := get_nested(entry, ("path",)), str) and isinstance(md5 := get_nested(entry, ("md5",)), str):
            yield path, md5


def _value(params: dict[str, Any], key: str) -> Any:
    """The value of a dotted key of dvc.lock; the names of benchmark and LoRA may hold dots themselves."""
    for table, selector in (("benchmarks", "benchmark"), ("loras", "lora")):
        entry = f"{table}.{params[selector]}"
        if key == entry or key.startswith(f"{entry}."):
            return get_nested(params[table][params[selector]], tuple(key.removeprefix(entry).split(".")[1:]))
    return get_nested(params, tuple(key.split(".")))


@functools.lru_cache(maxsize=8)  # many commits share a lock
def _locked(lock: bytes | None) -> dict[str, Any]:
    """The stages of a dvc.lock by name; none for one that is missing or damaged."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    if not lock:
        return {}
    try:
        return get_nested(YAML(typ="safe", pure=True).load(lock.decode("utf-8")), ("stages",)) or {}
    except (YAMLError, UnicodeDecodeError):
        return {}
