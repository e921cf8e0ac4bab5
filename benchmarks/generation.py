"""Generation against the stock pipeline, one prompt at a time and ten images of each.

Both draw as many images of every tissue with the same base and adapter, scheduler, steps, guidance and number format.
"""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.pairs import Bench, Row, in_turns
from benchmarks.pipelines import both, stock_images
from pathsynth.diffusion.adapter import add_lora, save_lora
from pathsynth.diffusion.base import load_base, locate_base, unet_sha256
from pathsynth.generation.filtering import first_attempts

IMAGES_PER_PROMPT = 10


def measure(bench: Bench) -> list[Row]:
    """Images per second."""
    params = bench.params
    prompts, base = params.benchmark.texts(params.lora.prompts), params.benchmark.base
    folder, adapter = locate_base(base, bench.root), bench.scratch / "adapter"
    # an untrained adapter costs as much as a trained one
    untrained = load_base(folder, bench.device, base.variant)
    add_lora(untrained.unet, params.lora.adapter)
    save_lora(adapter, untrained.unet, params.lora, "", unet_sha256(folder, base.variant))
    sampler, stock = both(bench, adapter)
    attempts = first_attempts(len(prompts), IMAGES_PER_PROMPT)

    def ours() -> Callable[[], int]:
        return lambda: len(sampler.draw_all(attempts))

    def theirs() -> Callable[[], int]:
        return lambda: sum(len(stock_images(bench, stock, prompt, IMAGES_PER_PROMPT)) for prompt in prompts)

    peer = f"StableDiffusionPipeline, a prompt at a time, {IMAGES_PER_PROMPT} images each"
    return [in_turns("generation", peer, "images/s", ours, theirs, bench.rounds)]
