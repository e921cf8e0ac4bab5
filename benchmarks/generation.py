"""Image generation against stock diffusers: images per second, with and without the gate.

Both contestants draw as many images of every class with the same base, adapter, scheduler, steps, guidance and number format.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from benchmarks.harness import Row, Setup, compare_rates
from pathsynth.classifiers.model import IMAGENET_MEAN, IMAGENET_STD, Classifier, load_classifier
from pathsynth.core.checkpoint import Checkpoint
from pathsynth.core.devices import autocast, dtype, tf32
from pathsynth.core.errors import ModelError
from pathsynth.core.scratch import temporary_folder
from pathsynth.diffusion.adapter import WEIGHTS, add_lora, attach_lora, save_lora
from pathsynth.diffusion.base import unet_sha256
from pathsynth.generation.filtering import generate_filtered
from pathsynth.generation.sampler import Sampler, set_scheduler
from pathsynth.generation.settings import SamplerSettings, read_generation
from pathsynth.generation.slots import Slots, first_attempts

IMAGES_PER_PROMPT = 10
ACCEPTED_PER_CLASS = 5


def compare_generation(setup: Setup) -> list[Row]:
    """Images per second against StableDiffusionPipeline, called once per prompt."""
    adapter, settings = setup.scratch / "adapter", read_sampler_settings(setup)
    # an untrained adapter costs as much as a trained one
    untrained = setup.load_base()
    add_lora(untrained.unet, setup.lora.adapter)
    save_lora(adapter, untrained.unet, setup.lora, "", _hash_unet(setup))
    del untrained  # it would count as memory of both contestants
    attempts = first_attempts(len(setup.prompts), IMAGES_PER_PROMPT)

    def ours() -> Callable[[], int]:
        sampler = load_merged_sampler(setup, adapter, settings, setup.params.seeds.drawing)
        return lambda: len(sampler(attempts))

    def theirs() -> Callable[[], int]:
        draw = load_stock_sampler(setup, adapter, settings)
        return lambda: sum(len(draw(prompt, IMAGES_PER_PROMPT)) for prompt in setup.prompts)

    peer = f"StableDiffusionPipeline, a prompt at a time, {IMAGES_PER_PROMPT} images each"
    return [compare_rates("generation", peer, "images/s", ours, theirs, setup.rounds)]


def compare_accepted_images(setup: Setup) -> list[Row]:
    """Accepted images per second against the paper's loop, with the adapter and gate that `make repro` has trained."""
    settings, adapter = read_sampler_settings(setup), setup.artifact("models/lora")
    max_attempts = read_generation(setup.params).filter.max_attempts
    wanted = [(i, prompt) for i, prompt in enumerate(setup.prompts) for _ in range(ACCEPTED_PER_CLASS)]

    def ours() -> Callable[[], int]:
        gate, sampler = load_gate(setup), load_merged_sampler(setup, adapter, settings, setup.params.seeds.drawing)
        return lambda: _check_any(fill_slots(setup, sampler, gate, ACCEPTED_PER_CLASS, max_attempts)[0])

    def theirs() -> Callable[[], int]:
        import torch

        gate, draw = load_gate(setup), load_stock_sampler(setup, adapter, settings)
        predict = _make_stock_gate(gate)

        def run() -> int:
            torch.manual_seed(setup.params.seeds.drawing)  # the same images in every round
            accepted = (any(predict(draw(prompt, 1)[0]) == label for _ in range(max_attempts)) for label, prompt in wanted)
            return _check_any(sum(accepted))

        return run

    peer = "draw one, classify one, again if wrong"
    return [compare_rates("accepted images", peer, "accepted images/s", ours, theirs, setup.rounds)]


def read_sampler_settings(setup: Setup) -> SamplerSettings:
    """The selected benchmark's sampler settings, with the number formats of the selected LoRA configuration."""
    return read_generation(setup.params).sampler


def load_gate(setup: Setup) -> Classifier:
    """The gate that `make repro` has trained."""
    return load_classifier(setup.artifact("models/gate"), setup.device, setup.dataset.slugs)


def load_merged_sampler(setup: Setup, adapter: Path, settings: SamplerSettings, seed: int) -> Sampler:
    """Our sampler, with the adapter merged into the base's weights."""
    pipeline = setup.load_base()
    attach_lora(pipeline, adapter, _hash_unet(setup))
    return Sampler(pipeline, setup.prompts, settings, seed, setup.dataset.image_size, setup.dataset.channels)


def load_stock_sampler(setup: Setup, adapter: Path, settings: SamplerSettings) -> Callable[[str, int], list]:
    """The peer: the pipeline as its documentation shows it; PIL images for a prompt and a count."""
    pipeline = setup.load_base()
    pipeline.load_lora_weights(adapter, weight_name=WEIGHTS)
    pipeline.to(dtype(settings.weight_dtype))
    set_scheduler(pipeline, settings.scheduler, settings.num_inference_steps)

    def draw(prompt: str, count: int) -> list:
        with autocast(setup.device, settings.mixed_precision), tf32(settings.tf32):
            return pipeline(
                prompt,
                negative_prompt=settings.negative_prompt,
                num_images_per_prompt=count,
                height=setup.dataset.image_size,
                width=setup.dataset.image_size,
                num_inference_steps=settings.num_inference_steps,
                guidance_scale=settings.guidance_scale,
            ).images

    return draw


def fill_slots(setup: Setup, sampler: Sampler, gate: Classifier, per_class: int, max_attempts: int) -> tuple[int, int]:
    """Generates filtered images in a temporary directory; the numbers of accepted and of attempted ones."""
    with temporary_folder(setup.scratch) as folder:
        slots = Slots(Checkpoint(folder), len(setup.prompts), per_class, sampler.image_size, setup.params.seeds.drawing)
        generate_filtered(sampler, gate.probabilities, slots, max_attempts, sampler.batch_size)
        return len(slots.accepted()[0]), len(slots.table(setup.dataset.slugs))


def _make_stock_gate(gate: Classifier) -> Callable:
    """The peer's classifier: torchvision's transforms on one PIL image."""
    import torch
    from torchvision import transforms

    size = (gate.card.input_size, gate.card.input_size)
    transform = transforms.Compose(
        [transforms.Resize(size), transforms.ToTensor(), transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
    )

    def predict(image) -> int:
        with torch.no_grad(), autocast(gate.device, gate.card.mixed_precision):
            return int(gate.network(transform(image)[None].to(gate.device)).argmax())

    return predict


def _hash_unet(setup: Setup) -> str:
    return unet_sha256(setup.base_folder, setup.base.variant)


def _check_any(accepted: int) -> int:
    if not accepted:
        raise ModelError("models/lora", "draws no image that the gate accepts, so nothing can be timed; run `make repro` first")
    return accepted
