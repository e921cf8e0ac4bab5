"""Images that pass the gate, against the paper's loop: draw one, classify it, draw another one if it is wrong.

Both use the trained adapter and gate, and the same scheduler, steps, guidance, number format and limit of attempts.
"""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.pairs import Bench, Row, in_turns
from pathsynth.base_model import load_base, locate_base, unet_sha256
from pathsynth.classifier import IMAGENET_MEAN, IMAGENET_STD, load_classifier
from pathsynth.devices import autocast
from pathsynth.errors import ModelError
from pathsynth.generation import Sampler, generate_filtered
from pathsynth.lora import WEIGHTS, attach_lora

IMAGES_PER_TISSUE = 5


def measure(bench: Bench) -> Row:
    """Accepted images per second, with the models that `make repro` has left in models/."""
    import torch

    params = bench.params
    settings, dataset, base = params.benchmark.generation, params.benchmark.dataset, params.benchmark.base
    prompts = params.benchmark.texts(params.lora.prompts)
    folder, adapter = locate_base(base, bench.root), bench.root / "models" / "lora"
    gate = load_classifier(bench.root / "models" / "gate", bench.device, dataset.slugs)
    merged = load_base(folder, bench.device, base.variant)
    attach_lora(merged, adapter, unet_sha256(folder, base.variant))
    sampler = Sampler(merged, prompts, settings, params.seed, dataset.image_size)
    stock = load_base(folder, bench.device, base.variant)
    stock.load_lora_weights(adapter, weight_name=WEIGHTS)
    stock.scheduler = merged.scheduler

    def ours() -> Callable[[], int]:
        def run() -> int:
            result = generate_filtered(
                sampler,
                gate.probabilities,
                len(prompts),
                IMAGES_PER_TISSUE,
                settings.max_attempts,
                sampler.batch_size,
                params.seed,
            )
            return _some(len(result.accepted))

        return run

    def theirs() -> Callable[[], int]:
        def run() -> int:
            # the same images in every round
            torch.manual_seed(params.seed)
            wanted = [(tissue, prompt) for tissue, prompt in enumerate(prompts) for _ in range(IMAGES_PER_TISSUE)]
            return _some(sum(_one_accepted(bench, stock, gate, prompt, tissue) for tissue, prompt in wanted))

        return run

    return in_turns(
        "accepted images", "draw one, classify one, again if wrong", "accepted images/s", ours, theirs, bench.rounds
    )


def _some(accepted: int) -> int:
    if not accepted:
        raise ModelError(
            "models/lora", "draws no image that the gate accepts, so there is nothing to time; run `make repro` first"
        )
    return accepted


def _one_accepted(bench: Bench, pipeline, gate, prompt: str, tissue: int) -> bool:
    """Whether an image passes before the limit."""
    import torch
    from torchvision import transforms

    settings, size = bench.params.benchmark.generation, bench.params.benchmark.dataset.image_size
    transform = transforms.Compose(
        [
            transforms.Resize((gate.card.input_size, gate.card.input_size)),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
    for _ in range(settings.max_attempts):
        with torch.no_grad():
            with autocast(bench.device, settings.mixed_precision):
                image = pipeline(
                    prompt,
                    negative_prompt=settings.negative_prompt,
                    height=size,
                    width=size,
                    num_inference_steps=settings.num_inference_steps,
                    guidance_scale=settings.guidance_scale,
                ).images[0]
            with autocast(bench.device, gate.card.mixed_precision):
                seen = gate.network(transform(image)[None].to(bench.device)).argmax(dim=1).item()
        if seen == tissue:
            return True
    return False
