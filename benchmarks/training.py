"""LoRA and classifier training against the loops that diffusers and MedMNIST publish, on random images."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from benchmarks.harness import Row, Setup, compare_rates
from pathsynth.classifiers.settings import Augmentation, Classifiers, ClassifierSettings
from pathsynth.classifiers.training import Training, build_classifier
from pathsynth.core.devices import autocast, dtype
from pathsynth.core.scratch import temporary_folder
from pathsynth.data.archives import Split
from pathsynth.data.prepared import Prepared, open_prepared, write_prepared
from pathsynth.diffusion.adapter import add_lora
from pathsynth.finetuning.objective import min_snr_weights
from pathsynth.finetuning.schedule import build_schedule
from pathsynth.finetuning.settings import LoraSettings
from pathsynth.finetuning.train import BETAS, EPSILON, train_lora

# As many epochs as the default run, where 350 steps of 32 images see the 2 250 phantoms five times.
LORA_IMAGES, EPOCHS = 128, 5
CLASSIFIER_IMAGES, CLASSIFIER_SIZE, CLASSIFIER_BATCH = 2048, 28, 128
UNTRAINED = {
    "weights": "none",
    "weight_decay": 0.0,
    "augmentation": Augmentation(flips=False, rotate90=False, stain=0.0, brightness=0.0, blur=0.0),
}


def compare_lora_training(setup: Setup) -> list[Row]:
    """Images per second against the loop of diffusers' text-to-image LoRA example.

    Both train the same adapter on the same base, images, batch size, mixed precision and number of steps. The example casts all
    frozen weights to that precision; ours keeps them as `weight_dtype` says. Ours is timed as a whole, with encoding; of the
    example only the steps are timed, in which VAE and text encoder run every time.
    """
    prepared = make_random_images(setup, LORA_IMAGES)
    batch = setup.lora.training.train_batch_size * setup.lora.training.gradient_accumulation_steps
    settings = set_steps(setup.lora, max(1, EPOCHS * LORA_IMAGES // batch))

    def ours() -> Callable[[], int]:
        return prepare_lora_run(setup, prepared, settings)

    def theirs() -> Callable[[], int]:
        return _prepare_diffusers_loop(setup, prepared, settings)

    peer = "the loop of diffusers' text-to-image LoRA example"
    return [compare_rates("LoRA training", peer, "images/s", ours, theirs, setup.rounds)]


def compare_merged_adapter(setup: Setup) -> list[Row]:
    """LoRA training with the adapter merged into the weights once a step, against peft's way: added to every layer's output."""
    prepared, settings = make_random_images(setup, LORA_IMAGES), set_steps(setup.lora, EPOCHS)

    def contestant(merged: bool) -> Callable[[], int]:
        training = settings.training.model_copy(update={"merged": merged, "gradient_checkpointing": False})
        return prepare_lora_run(setup, prepared, settings.model_copy(update={"training": training}))

    ours, theirs = partial(contestant, True), partial(contestant, False)
    return [compare_rates("merged adapter", "peft's adapter layers", "images/s", ours, theirs, setup.rounds)]


def compare_classifier_training(setup: Setup) -> list[Row]:
    """Images per second of one epoch against MedMNIST's training loop, with the gate's network and number format.

    The peer's passes over train, val and test after every epoch are left out.
    """
    rng, slugs = np.random.default_rng(0), setup.dataset.slugs
    images = rng.integers(0, 256, (CLASSIFIER_IMAGES, CLASSIFIER_SIZE, CLASSIFIER_SIZE, 3), np.uint8)
    labels = np.arange(CLASSIFIER_IMAGES) % len(slugs)
    settings = setup.params.section("classifiers", Classifiers).gate.model_copy(
        update={"input_size": CLASSIFIER_SIZE, "batch_size": CLASSIFIER_BATCH, "epochs": 1, **UNTRAINED}
    )

    def ours() -> Callable[[], int]:
        return prepare_classifier_run(setup, images, labels, settings)

    def theirs() -> Callable[[], int]:
        network = build_classifier(settings, slugs, setup.params.seeds.observers, setup.device, setup.params.folder).network
        return _prepare_medmnist_loop(network, images, labels, settings, setup.device)

    peer = f"MedMNIST's training loop, {CLASSIFIER_SIZE} px, same network"
    return [compare_rates("classifier training", peer, "images/s", ours, theirs, setup.rounds)]


def prepare_lora_run(setup: Setup, prepared: Prepared, settings: LoraSettings) -> Callable[[], int]:
    """Our LoRA training, ready to start; the base is loaded."""
    pipeline = setup.load_base()

    def run() -> int:
        # a new folder, where no latents are kept of another run
        with temporary_folder(setup.scratch) as scratch:
            result = train_lora(
                pipeline, prepared, setup.prompts, settings, setup.params.seeds.training, lambda *_: None, scratch=scratch
            )
        return int(result["images_seen"])

    return run


def prepare_classifier_run(
    setup: Setup, images: np.ndarray, labels: np.ndarray, settings: ClassifierSettings
) -> Callable[[], int]:
    """Our classifier training, ready to start; returns the number of images that it saw."""
    classifier = build_classifier(
        settings, setup.dataset.slugs, setup.params.seeds.observers, setup.device, setup.params.folder
    )

    def run() -> int:
        Training(classifier, images, labels, settings, setup.params.seeds.observers).run()
        return len(images) // settings.batch_size * settings.batch_size

    return run


def set_steps(settings: LoraSettings, steps: int) -> LoraSettings:
    """The same LoRA configuration with another number of steps."""
    return settings.model_copy(update={"training": settings.training.model_copy(update={"max_train_steps": steps})})


def make_random_images(setup: Setup, count: int) -> Prepared:
    """A prepared data set of `count` random training images, written once: what they show does not change a run time."""
    folder, dataset, size = setup.scratch / f"images-{count}", setup.dataset, setup.dataset.image_size
    if not folder.exists():
        rng, splits = np.random.default_rng(0), dict[str, Split]()
        for split, number in {"train": count, "val": 9, "test": 9}.items():
            images = np.lib.format.open_memmap(setup.scratch / f"{count}-{split}.npy", "w+", np.uint8, (number, size, size, 3))
            for start in range(0, number, 500):
                images[start : start + 500] = rng.integers(0, 256, images[start : start + 500].shape, np.uint8)
            splits[split] = (images, (np.arange(number) % len(dataset.slugs)).astype(np.uint8))
        write_prepared(folder, "bench", dataset.label_names, splits, {}, size)
    return open_prepared(folder)


def _make_pil_dataset(load_image: Callable, targets: list):
    """The peers' Dataset: PIL images through torchvision's transforms to [-1, 1], each with its target."""
    from torch.utils.data import Dataset
    from torchvision import transforms

    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize([0.5], [0.5])])

    class Examples(Dataset):
        def __len__(self) -> int:
            return len(targets)

        def __getitem__(self, index: int):
            return transform(load_image(index)), targets[index]

    return Examples()


def _prepare_medmnist_loop(
    network, images: np.ndarray, labels: np.ndarray, settings: ClassifierSettings, device: str
) -> Callable[[], int]:
    """One epoch of MedMNIST's experiments: PIL images, torchvision's transforms, a DataLoader, Adam."""
    import torch
    from PIL import Image
    from torch.utils.data import DataLoader

    examples = _make_pil_dataset(lambda index: Image.fromarray(images[index]), labels.tolist())
    optimizer = torch.optim.Adam(network.parameters(), settings.learning_rate)
    criterion = torch.nn.CrossEntropyLoss()

    def run() -> int:
        network.train()
        for pixels, targets in DataLoader(examples, settings.batch_size, shuffle=True):
            optimizer.zero_grad()
            with autocast(device, settings.mixed_precision):
                loss = criterion(network(pixels.to(device)), targets.to(device))
            loss.backward()
            optimizer.step()
        return len(images)

    return run


def _prepare_diffusers_loop(setup: Setup, prepared: Prepared, settings: LoraSettings) -> Callable[[], int]:
    """The steps of examples/text_to_image/train_text_to_image_lora.py: VAE, text encoder and UNet run in every step."""
    import torch
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    training, optimization, pipeline = settings.training, settings.optimizer, setup.load_base()
    AcceleratorState._reset_state()
    accelerator = Accelerator(
        cpu=setup.device == "cpu",
        mixed_precision=training.mixed_precision,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
    )
    weights = dtype("fp32" if training.mixed_precision == "no" else training.mixed_precision)
    for part in (pipeline.vae, pipeline.text_encoder, pipeline.unet):
        part.requires_grad_(False)
        part.to(accelerator.device, dtype=weights)
    parameters = add_lora(pipeline.unet, settings.adapter)
    optimizer = torch.optim.AdamW(parameters, optimization.learning_rate, BETAS, EPSILON, optimization.weight_decay)
    schedule = build_schedule(optimizer, settings.schedule, training.max_train_steps)
    batches = training.max_train_steps * training.gradient_accumulation_steps
    loader = _make_captioned_loader(pipeline, prepared, setup.prompts, training.train_batch_size, batches)
    unet, optimizer, loader, schedule = accelerator.prepare(pipeline.unet, optimizer, loader, schedule)
    compute_loss = _make_denoising_loss(pipeline, unet, weights, settings.objective.snr_gamma)

    def run() -> int:
        unet.train()
        for pixels, tokens in loader:
            with accelerator.accumulate(unet):
                loss = compute_loss(pixels, tokens)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(parameters, optimization.max_grad_norm)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
            loss.item()  # for the progress bar, as in the example
        return batches * training.train_batch_size

    return run


def _make_captioned_loader(pipeline, prepared: Prepared, prompts: list[str], batch_size: int, batches: int):
    """The example's DataLoader: pixels in [-1, 1] and token ids.

    One pass holds all batches of the training, because accelerate makes an optimiser step wherever a loader ends.
    """
    from PIL import Image
    from torch.utils.data import DataLoader, RandomSampler

    tokens = pipeline.tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    pictures = [Image.fromarray(image) for image in np.array(prepared.images("train"))]
    examples = _make_pil_dataset(pictures.__getitem__, [tokens[label] for label in prepared.labels_of("train")])
    return DataLoader(examples, batch_size, sampler=RandomSampler(examples, replacement=True, num_samples=batch_size * batches))


def _make_denoising_loss(pipeline, unet, weights, snr_gamma: float | None) -> Callable:
    """The example's loss for pixels and token ids, with min-SNR weights if `snr_gamma` is set."""
    import torch
    import torch.nn.functional as F
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    velocity = scheduler.config.prediction_type == "v_prediction"

    def compute_loss(pixels, tokens):
        latents = pipeline.vae.encode(pixels.to(weights)).latent_dist.sample() * pipeline.vae.config.scaling_factor
        noise = torch.randn_like(latents)
        timesteps = torch.randint(scheduler.config.num_train_timesteps, (len(latents),), device=latents.device)
        noisy = scheduler.add_noise(latents, noise, timesteps)
        predicted = unet(noisy, timesteps, pipeline.text_encoder(tokens, return_dict=False)[0], return_dict=False)[0]
        target = scheduler.get_velocity(latents, noise, timesteps) if velocity else noise
        losses = F.mse_loss(predicted.float(), target.float(), reduction="none").mean(dim=(1, 2, 3))
        if snr_gamma is not None:
            losses = losses * min_snr_weights(scheduler, timesteps, snr_gamma, velocity)
        return losses.mean()

    return compute_loss
