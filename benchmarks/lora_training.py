"""LoRA training against the loop that diffusers documents for text-to-image LoRA: VAE and text encoder work in every step.

Both train the same adapter on the same base, images, batch, mixed precision, optimiser and number of steps; the example casts
all frozen weights to that precision, ours keeps them as `weight_dtype` says. Ours is timed whole: encoding, adding the adapter
and all steps; of theirs the steps alone.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from benchmarks.pairs import Bench, Row, in_turns
from benchmarks.random_images import random_images
from pathsynth.core.devices import dtype
from pathsynth.data.prepared import Prepared
from pathsynth.diffusion.adapter import add_lora
from pathsynth.diffusion.base import load_base, locate_base
from pathsynth.finetuning.schedule import build_schedule
from pathsynth.finetuning.settings import LoraSettings
from pathsynth.finetuning.snr import min_snr_weights
from pathsynth.finetuning.train import train_lora

# As in params.yaml, where 350 steps of 32 see the 2 250 phantoms five times.
IMAGES, EPOCHS = 128, 5


def measure(bench: Bench) -> list[Row]:
    """Images per second of a training on random images; what they show changes no time."""
    params = bench.params
    base, prompts = params.benchmark.base, params.benchmark.texts(params.lora.prompts)
    folder = locate_base(base, bench.root)
    prepared = random_images(bench, IMAGES)
    step = params.lora.training.train_batch_size * params.lora.training.gradient_accumulation_steps
    training = params.lora.training.model_copy(update={"max_train_steps": max(1, EPOCHS * IMAGES // step)})
    settings = params.lora.model_copy(update={"training": training})

    def ours() -> Callable[[], int]:
        pipeline = load_base(folder, bench.device, base.variant)

        def run() -> int:
            result = train_lora(pipeline, prepared, prompts, settings, params.seed, _ignore, scratch=bench.scratch)
            return int(result["images_seen"])

        return run

    def theirs() -> Callable[[], int]:
        return _documented_loop(load_base(folder, bench.device, base.variant), prepared, prompts, settings)

    return [
        in_turns("LoRA training", "the loop of diffusers' text-to-image LoRA example", "images/s", ours, theirs, bench.rounds)
    ]


def _ignore(step: int, values: dict[str, float]) -> None:
    """A curve that nobody looks at."""


def _loader(prepared: Prepared, tokens, batch_size: int, batches: int):
    """The DataLoader of the peer: pixels in [-1, 1] and token numbers, from PIL images that are in memory.

    All batches of the training in one pass: where a loader ends, accelerate makes an optimiser step of its own.
    """
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset, RandomSampler
    from torchvision import transforms

    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize([0.5], [0.5])])
    labels, images = prepared.labels_of("train"), prepared.images("train")
    pictures = [Image.fromarray(np.array(image)) for image in images]

    class Examples(Dataset):
        def __len__(self) -> int:
            return len(pictures)

        def __getitem__(self, index: int):
            return transform(pictures[index]), tokens[int(labels[index])]

    examples = Examples()
    return DataLoader(examples, batch_size, sampler=RandomSampler(examples, replacement=True, num_samples=batch_size * batches))


def _documented_loop(pipeline, prepared: Prepared, prompts: list[str], settings: LoraSettings) -> Callable[[], int]:
    """The peer: a DataLoader of transformed PIL images and token numbers, all models in the mixed format, plain AdamW."""
    import torch
    import torch.nn.functional as F
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from diffusers import DDPMScheduler

    training, o = settings.training, settings.optimizer
    AcceleratorState._reset_state()
    accelerator = Accelerator(
        cpu=pipeline.device.type == "cpu",
        mixed_precision=training.mixed_precision,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
    )
    weights = dtype("fp32" if training.mixed_precision == "no" else training.mixed_precision)
    vae, text_encoder, unet = pipeline.vae, pipeline.text_encoder, pipeline.unet
    for part in (vae, text_encoder, unet):
        part.requires_grad_(False)
        part.to(accelerator.device, dtype=weights)
    parameters = add_lora(unet, settings.adapter)
    optimizer = torch.optim.AdamW(parameters, o.learning_rate, (o.beta1, o.beta2), o.epsilon, o.weight_decay)
    schedule = build_schedule(optimizer, settings.schedule, training.max_train_steps)
    tokens = pipeline.tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    micro_batches = training.max_train_steps * training.gradient_accumulation_steps
    loader = _loader(prepared, tokens, training.train_batch_size, micro_batches)
    noise_scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    unet, optimizer, loader, schedule = accelerator.prepare(unet, optimizer, loader, schedule)

    def loss_of(pixels, ids):
        latents = vae.encode(pixels.to(weights)).latent_dist.sample() * vae.config.scaling_factor
        noise = torch.randn_like(latents)
        timesteps = torch.randint(noise_scheduler.config.num_train_timesteps, (len(latents),), device=latents.device)
        noisy = noise_scheduler.add_noise(latents, noise, timesteps)
        predicted = unet(noisy, timesteps, text_encoder(ids, return_dict=False)[0], return_dict=False)[0]
        velocity = noise_scheduler.config.prediction_type == "v_prediction"
        target = noise_scheduler.get_velocity(latents, noise, timesteps) if velocity else noise
        losses = F.mse_loss(predicted.float(), target.float(), reduction="none").mean(dim=(1, 2, 3))
        if settings.objective.snr_gamma is not None:
            losses = losses * min_snr_weights(noise_scheduler, timesteps, settings.objective.snr_gamma, velocity)
        return losses.mean()

    def run() -> int:
        unet.train()
        for pixels, ids in loader:
            with accelerator.accumulate(unet):
                loss = loss_of(pixels, ids)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(parameters, o.max_grad_norm)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
            # for the progress bar, as in the example
            loss.item()
        return micro_batches * training.train_batch_size

    return run
