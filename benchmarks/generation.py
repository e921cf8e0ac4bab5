"""Speed of generation against the stock pipeline called once per image: `make bench`.

Both draw the same prompts with the same base, scheduler, steps, guidance and number format, in turns, on the same machine.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version

import click

from pathsynth.base_model import load_base, locate_base
from pathsynth.cli import FILE, reports_errors
from pathsynth.devices import autocast, pick_device
from pathsynth.files import write_json
from pathsynth.generation import Attempt, Sampler
from pathsynth.params import load_params

WARM_UP = 1


@click.command()
@click.option("--params", "params_path", type=FILE, default="params.yaml", show_default=True)
@click.option("--images", type=click.IntRange(1), default=10, show_default=True, help="Images per round.")
@click.option("--rounds", type=click.IntRange(2), default=7, show_default=True, help="Rounds of each, in turns.")
@click.option("--out", type=FILE, default="benchmarks/results/generation.json", show_default=True)
@reports_errors
def main(params_path, images, rounds, out):
    """Times our batches against one call of StableDiffusionPipeline per image."""
    import torch

    params, device = load_params(params_path), pick_device()
    settings, size = params.benchmark.generation, params.benchmark.dataset.image_size
    prompts, base = params.benchmark.texts(params.lora.prompts), params.benchmark.base
    pipeline = load_base(locate_base(base, params_path.parent), device, base.variant)
    sampler = Sampler(pipeline, prompts, settings, params.seed, size)
    attempts = [Attempt(i % len(prompts), i, 0) for i in range(images)]

    def stock() -> None:
        with torch.inference_mode(), autocast(device, settings.mixed_precision):
            for attempt in attempts:
                pipeline(
                    prompts[attempt.tissue],
                    negative_prompt=settings.negative_prompt,
                    generator=torch.Generator().manual_seed(attempt.seed(params.seed)),
                    height=size,
                    width=size,
                    num_inference_steps=settings.num_inference_steps,
                    guidance_scale=settings.guidance_scale,
                    output_type="np",
                )

    rates = in_turns({"ours": lambda: sampler(attempts), "theirs": stock}, images, rounds)
    ratios = [ours / theirs for ours, theirs in zip(rates["ours"], rates["theirs"], strict=True)]
    row = {
        "part": "generation",
        "peer": f"StableDiffusionPipeline, {settings.scheduler}, {settings.num_inference_steps} steps, one call per image",
        "ours": round(statistics.median(rates["ours"]), 2),
        "theirs": round(statistics.median(rates["theirs"]), 2),
        "unit": "images/s",
        "ratio": round(statistics.median(ratios), 2),
        "spread": f"{min(ratios):.2f} to {max(ratios):.2f}",
        "n": rounds,
    }
    where = torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} CPU threads"
    versions = {name: version(name) for name in ("torch", "diffusers")} | {"python": platform.python_version()}
    write_json(out, {"machine": where, "versions": versions, "base": base.model_dump(), "rows": {"generation": row}})
    click.echo("  ".join(f"{key}: {value}" for key, value in row.items()))


def in_turns(contestants: dict[str, Callable[[], object]], images: int, rounds: int) -> dict[str, list[float]]:
    """Images per second of every contestant in every round, after one round that does not count."""
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(WARM_UP + rounds):
        for name, run in contestants.items():
            start = time.perf_counter()
            run()
            if turn >= WARM_UP:
                rates[name].append(images / (time.perf_counter() - start))
    return rates


if __name__ == "__main__":
    main()
