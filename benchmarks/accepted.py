"""Images that pass the gate, against the paper's loop: draw one, classify it, draw another one if it is wrong.

Both use the trained adapter and gate, and the same scheduler, steps, guidance, number format and limit of attempts.
"""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.pairs import Bench, Row, in_turns
from benchmarks.pipelines import both, stock_images
from pathsynth.classifiers.model import IMAGENET_MEAN, IMAGENET_STD, load_classifier
from pathsynth.core.checkpoint import Saved
from pathsynth.core.devices import autocast
from pathsynth.core.errors import ModelError
from pathsynth.core.scratch import temporary_folder
from pathsynth.generation.filtering import generate_filtered
from pathsynth.generation.slots import Slots

IMAGES_PER_TISSUE = 5


def measure(bench: Bench) -> list[Row]:
    """Accepted images per second, with the models that `make repro` has left in models/."""
    import torch
    from torchvision import transforms

    params = bench.params
    settings, prompts = params.benchmark.generation, params.benchmark.texts(params.lora.prompts)
    gate = load_classifier(bench.root / "models" / "gate", bench.device, params.benchmark.dataset.slugs)
    sampler, stock = both(bench, bench.root / "models" / "lora")
    resize = transforms.Resize((gate.card.input_size, gate.card.input_size))
    transform = transforms.Compose([resize, transforms.ToTensor(), transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)])

    def accepts(prompt: str, tissue: int) -> bool:
        image = transform(stock_images(bench, stock, prompt, 1)[0])[None].to(bench.device)
        with torch.no_grad(), autocast(bench.device, gate.card.mixed_precision):
            return gate.network(image).argmax(dim=1).item() == tissue

    def ours() -> Callable[[], int]:
        def run() -> int:
            with temporary_folder(bench.scratch) as folder:
                slots = Slots(Saved(folder), len(prompts), IMAGES_PER_TISSUE, sampler.image_size, params.seed)
                generate_filtered(sampler, gate.probabilities, slots, settings.max_attempts, sampler.batch_size)
                return _some(len(slots.accepted()[0]))

        return run

    def theirs() -> Callable[[], int]:
        def run() -> int:
            # the same images in every round
            torch.manual_seed(params.seed)
            wanted = [(tissue, prompt) for tissue, prompt in enumerate(prompts) for _ in range(IMAGES_PER_TISSUE)]
            return _some(sum(any(accepts(prompt, tissue) for _ in range(settings.max_attempts)) for tissue, prompt in wanted))

        return run

    return [
        in_turns("accepted images", "draw one, classify one, again if wrong", "accepted images/s", ours, theirs, bench.rounds)
    ]


def _some(accepted: int) -> int:
    if not accepted:
        raise ModelError(
            "models/lora", "draws no image that the gate accepts, so there is nothing to time; run `make repro` first"
        )
    return accepted
