"""Generation against the stock pipeline, one prompt at a time and ten images of each.

Both draw as many images of every tissue with the same base and adapter, scheduler, steps, guidance and number format.
"""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.pairs import Bench, Row, in_turns
from pathsynth.base_model import load_base, locate_base, unet_sha256
from pathsynth.devices import autocast
from pathsynth.generation import Sampler, first_attempts
from pathsynth.lora import WEIGHTS, add_lora, attach_lora, save_lora

IMAGES_PER_PROMPT = 10


def measure(bench: Bench) -> Row:
    """Images per second."""
    params = bench.params
    settings, size, base = params.benchmark.generation, params.benchmark.dataset.image_size, params.benchmark.base
    prompts = params.benchmark.texts(params.lora.prompts)
    folder, adapter = locate_base(base, bench.root), bench.scratch / "adapter"
    checksum = unet_sha256(folder, base.variant)
    # an untrained adapter costs as much as a trained one
    untrained = load_base(folder, bench.device, base.variant)
    add_lora(untrained.unet, params.lora.adapter)
    save_lora(adapter, untrained.unet, params.lora, "", checksum)

    merged = load_base(folder, bench.device, base.variant)
    attach_lora(merged, adapter, checksum)
    sampler = Sampler(merged, prompts, settings, params.seed, size)
    attempts = first_attempts(len(prompts), IMAGES_PER_PROMPT)
    stock = load_base(folder, bench.device, base.variant)
    stock.load_lora_weights(adapter, weight_name=WEIGHTS)
    stock.scheduler = merged.scheduler

    def ours() -> Callable[[], int]:
        return lambda: len(sampler.draw_all(attempts))

    def theirs() -> Callable[[], int]:
        def run() -> int:
            with autocast(bench.device, settings.mixed_precision):
                return sum(len(_drawn(stock, prompt, settings, size)) for prompt in prompts)

        return run

    peer = f"StableDiffusionPipeline, a prompt at a time, {IMAGES_PER_PROMPT} images each"
    return in_turns("generation", peer, "images/s", ours, theirs, bench.rounds)


def _drawn(pipeline, prompt: str, settings, size: int) -> list:
    """PIL images of one prompt."""
    return pipeline(
        prompt,
        negative_prompt=settings.negative_prompt,
        num_images_per_prompt=IMAGES_PER_PROMPT,
        height=size,
        width=size,
        num_inference_steps=settings.num_inference_steps,
        guidance_scale=settings.guidance_scale,
    ).images
