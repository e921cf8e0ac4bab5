"""The two ways to draw images: our sampler with the adapter merged, and the stock pipeline as its documentation shows it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.pairs import Bench
from pathsynth.cli.check import Params
from pathsynth.core.devices import autocast, dtype
from pathsynth.diffusion.adapter import WEIGHTS, attach_lora
from pathsynth.diffusion.base import load_base, locate_base, unet_sha256
from pathsynth.generation.sampler import Sampler
from pathsynth.generation.settings import GenerationSettings

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


def both(bench: Bench, adapter: Path) -> tuple[Sampler, StableDiffusionPipeline]:
    """Ours and the peer's, with the same base, adapter and scheduler."""
    params = bench.params
    settings, base = params.benchmark.generation, params.benchmark.base
    merged = merged_pipeline(params, bench.root, bench.device, adapter)
    sampler = sampler_of(merged, params, settings, params.seed)
    stock = load_base(locate_base(base, bench.root), bench.device, base.variant)
    stock.load_lora_weights(adapter, weight_name=WEIGHTS)
    stock.to(dtype(settings.weight_dtype))
    stock.scheduler = merged.scheduler
    return sampler, stock


def merged_pipeline(params: Params, root: Path, device: str, adapter: Path) -> StableDiffusionPipeline:
    """The base with an adapter merged into its weights."""
    base = params.benchmark.base
    folder = locate_base(base, root)
    pipeline = load_base(folder, device, base.variant)
    attach_lora(pipeline, adapter, unet_sha256(folder, base.variant))
    return pipeline


def sampler_of(pipeline: StableDiffusionPipeline, params: Params, settings: GenerationSettings, seed: int) -> Sampler:
    """Draws the prompts of the selected LoRA in a way that may differ from the benchmark's own."""
    dataset, prompts = params.benchmark.dataset, params.benchmark.texts(params.lora.prompts)
    return Sampler(pipeline, prompts, settings, seed, dataset.image_size, dataset.channels)


def stock_images(bench: Bench, stock: StableDiffusionPipeline, prompt: str, count: int) -> list:
    """`count` PIL images of one prompt, drawn in one call."""
    settings, size = bench.params.benchmark.generation, bench.params.benchmark.dataset.image_size
    with autocast(bench.device, settings.mixed_precision):
        return stock(
            prompt,
            negative_prompt=settings.negative_prompt,
            num_images_per_prompt=count,
            height=size,
            width=size,
            num_inference_steps=settings.num_inference_steps,
            guidance_scale=settings.guidance_scale,
        ).images
