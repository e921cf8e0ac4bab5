"""`python -m pathsynth check`: validates params.yaml and every file under configs/, and checks the GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import click

from pathsynth.classifiers.settings import Classifiers
from pathsynth.cli.options import FILE, run_as_command
from pathsynth.core.errors import ParamsError, PathsynthError
from pathsynth.core.gpu import check_device
from pathsynth.core.params import (
    BENCHMARKS,
    PROMPTS,
    Section,
    check_name,
    config_names,
    load_params,
    lora_names,
    read_yaml,
    resolve_lora,
    validate,
)
from pathsynth.data.settings import AnyDataset
from pathsynth.diffusion.settings import BaseModelSettings, Prompts
from pathsynth.evaluation.settings import EvaluationSettings
from pathsynth.finetuning.batches import check_process_count
from pathsynth.finetuning.settings import LoraSettings
from pathsynth.generation.settings import GenerationSettings


class Benchmark(Section):
    """A file of configs/benchmarks: images, base model, classifiers, generation and scoring."""

    dataset: AnyDataset
    base: BaseModelSettings
    classifiers: Classifiers
    generation: GenerationSettings
    evaluation: EvaluationSettings


def find_mistakes(path: Path) -> Iterator[ParamsError]:
    """Validates a parameter file with all benchmarks, prompts and LoRA configurations, and yields their errors.

    Args:
        path: params.yaml; configs/ is expected beside it.
    """
    checks: list[Callable[[], Any]] = [partial(load_params, path)]
    checks += [partial(check_benchmark, path.parent, name) for name in config_names(path.parent / BENCHMARKS)]
    checks += [partial(check_prompts_used, path.parent, name) for name in config_names(path.parent / PROMPTS)]
    # if this fails, load_params reports why
    with suppress(ParamsError):
        tree = read_yaml(path)
        checks += [partial(check_lora, path, tree, name) for name in lora_names(path, tree)]
    for check in checks:
        try:
            check()
        except ParamsError as error:
            yield error


def check_benchmark(folder: Path, name: str) -> Benchmark:
    """Validates a benchmark and its prompts.

    Raises:
        ParamsError: the first mistake.
    """
    path, prompts_path = folder / BENCHMARKS / f"{name}.yaml", folder / PROMPTS / f"{name}.yaml"
    check_name(path, "file name", name)
    benchmark = validate(path, "", Benchmark, read_yaml(path))
    prompts = validate(prompts_path, "", Prompts, read_yaml(prompts_path))
    prompts.check_tissues(prompts_path, benchmark.dataset.slugs)
    return benchmark


def check_prompts_used(folder: Path, name: str) -> None:
    """Raises a ParamsError for prompts of a benchmark that does not exist."""
    if not (folder / BENCHMARKS / f"{name}.yaml").is_file():
        raise ParamsError(folder / PROMPTS / f"{name}.yaml", "file name", f"there is no benchmark {name!r} in {BENCHMARKS}")


def check_lora(path: Path, tree: dict[str, Any], name: str) -> LoraSettings:
    """Validates a LoRA configuration.

    Raises:
        ParamsError: the first mistake.
    """
    return validate(path, f"loras.{name}", LoraSettings, resolve_lora(path, tree, name))


@click.command()
@click.option("--params", "params_path", type=FILE, default="params.yaml", show_default=True)
@run_as_command
def check(params_path: Path) -> None:
    """Validates params.yaml and every file under configs/, and checks that torch can use the GPU.

    Prints one line for each file or configuration with a mistake, and then exits with 1.
    """
    mistakes = list(find_mistakes(params_path))
    for mistake in mistakes[:-1]:
        click.echo(f"error: {mistake}", err=True)
    if mistakes:
        raise PathsynthError(str(mistakes[-1]))
    params = load_params(params_path)
    check_device(params.device)
    check_process_count(params.section("lora", LoraSettings), params.processes)
    benchmarks, loras = config_names(params_path.parent / BENCHMARKS), lora_names(params_path, read_yaml(params_path))
    click.echo(f"{params_path}: {len(benchmarks)} benchmarks and {len(loras)} LoRA configurations are valid")
