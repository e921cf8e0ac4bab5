"""Trains the bundled base: draws textures, trains the VAE, encodes once, trains UNet and text encoder.

The random numbers of a step depend only on the seed and the number of the step, so an interrupted training goes on as if it had
not been interrupted.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from pathsynth.bundled_base import models, textures
from pathsynth.bundled_base.optimizer import MuonWithAdamW
from pathsynth.bundled_base.settings import BaseSettings, Phase, TextureSettings, UnetSettings, VaeSettings
from pathsynth.core.checkpoint import NO_CHECKPOINT, Checkpoint
from pathsynth.core.devices import autocast, training_attention, unet_memory_format
from pathsynth.core.errors import ModelError, TrainingError
from pathsynth.core.io import read_json, write_json
from pathsynth.core.progress import progress_bar
from pathsynth.data.images import as_batch
from pathsynth.diffusion.denoising import squared_errors
from pathsynth.diffusion.noise_levels import draw_timesteps

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer


# The state of a checkpoint that holds captions, encoded textures and the VAE that encoded them.
POOL = "textures"


class Stateful(Protocol):
    """A model, an optimizer, or anything else whose state a step changes."""

    def state_dict(self) -> dict[str, Any]:
        """The state."""

    def load_state_dict(self, state: dict[str, Any], /) -> Any:
        """Restores it."""


@dataclass(frozen=True)
class Parts:
    """The parts of a base."""

    vae: AutoencoderKL
    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    unet: UNet2DConditionModel


def train_base(
    settings: BaseSettings, out: Path, device: str, checkpoint: Checkpoint = NO_CHECKPOINT, start: Path | None = None
) -> dict:
    """Trains the base and saves it to the folder `out`.

    Args:
        settings: textures, architectures and training.
        out: output folder.
        device: torch device.
        checkpoint: saves the training at intervals, and resumes an interrupted one.
        start: a base of these architectures, whose UNet and text encoder are trained further; VAE and tokenizer are kept.

    Returns:
        `reconstruction`, the VAE's error on unseen textures, and `parameters`, the number of parameters of each part.

    Raises:
        TrainingError: a loss is NaN or infinite.
        ModelError: `start` does not load, or has other architectures.
    """
    parts, latents, captions = _prepare_pool(settings, device, checkpoint, start)
    train_unet(parts, latents, captions, settings, checkpoint)
    save_pipeline(out, parts)
    unseen = settings.textures.model_copy(update={"count": 512})
    return {
        "reconstruction": reconstruction_error(parts.vae, draw_pool(unseen, settings.seed + 1, 1)[0]),
        "parameters": {
            name: sum(p.numel() for p in part.parameters())
            for name, part in (("vae", parts.vae), ("text_encoder", parts.text_encoder), ("unet", parts.unet))
        },
    }


def _prepare_pool(
    settings: BaseSettings, device: str, checkpoint: Checkpoint, start: Path | None
) -> tuple[Parts, torch.Tensor, list[str]]:
    """Draws and encodes the textures with the trained VAE, a quarter of an hour that the checkpoint saves when resuming."""

    def make_parts(captions: list[str]) -> Parts:
        return build_parts(settings, captions, device) if start is None else load_parts(start, settings, device)

    if saved := checkpoint.load(POOL):
        parts = make_parts(saved["captions"])
        parts.vae.load_state_dict(saved["vae"])
        parts.vae.register_to_config(scaling_factor=saved["scaling_factor"])
        return parts, saved["latents"], saved["captions"]
    images, captions = draw_pool(settings.textures, settings.seed, os.cpu_count() or 1)
    parts = make_parts(captions)
    if start is None:
        train_vae(parts.vae, images, settings.vae, settings.seed, checkpoint)
    factor = parts.vae.config.scaling_factor
    latents = encode_images(parts.vae, images) * factor
    state = {"captions": captions, "vae": parts.vae.state_dict(), "scaling_factor": factor, "latents": latents}
    checkpoint.save(POOL, state)
    return parts, latents, captions


def build_parts(settings: BaseSettings, captions: list[str], device: str) -> Parts:
    """Builds the untrained parts; their weights follow the seed."""
    import torch

    torch.manual_seed(settings.seed)
    tokenizer = models.build_tokenizer(captions, settings.textures)
    size = settings.textures.image_size
    vae = models.build_vae(settings.vae, size)
    latent_size = size // 2 ** (len(settings.vae.block_out_channels) - 1)
    text_encoder = models.build_text_encoder(tokenizer, settings.unet)
    unet = models.build_unet(settings.unet, settings.vae.latent_channels, latent_size)
    return Parts(_place(vae, device), tokenizer, _place(text_encoder, device), _place(unet, device))


def load_parts(folder: Path, settings: BaseSettings, device: str) -> Parts:
    """Loads the parts of a base in float32.

    Raises:
        ModelError: it does not load, or has other architectures than `settings`.
    """
    from pathsynth.diffusion.base import load_base

    pipeline = load_base(folder, "cpu")
    expected = build_parts(settings, [], "cpu")
    for name in ("vae", "text_encoder", "unet"):
        shapes, wanted = (
            {key: value.shape for key, value in getattr(parts, name).state_dict().items()} for parts in (pipeline, expected)
        )
        # the vocabulary depends on the captions that the tokenizer was trained with
        different = [key for key in {**shapes, **wanted} if "token_embedding" not in key and shapes.get(key) != wanted.get(key)]
        if different:
            raise ModelError(folder, f"has another {name} than the settings: {sorted(different)[0]} differs")
    parts = (_place(getattr(pipeline, name), device) for name in ("vae", "text_encoder", "unet"))
    vae, text_encoder, unet = parts
    return Parts(vae, pipeline.tokenizer, text_encoder.train(), unet.train())


def _place(module: Any, device: str) -> Any:
    """Moves a part to the device."""
    return module.to(device, memory_format=unet_memory_format(device))


def _make_generator(seed: int, name: str, step: int) -> torch.Generator:
    """The random numbers of one step."""
    import torch

    words = np.random.SeedSequence([seed, *name.encode(), step]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(words[0] >> np.uint64(1)))


def run_steps(
    name: str,
    count: int,
    step: Callable[[int], Mapping[str, float]],
    trained: Mapping[str, Stateful],
    others: Mapping[str, Stateful],
    finish: Callable[[], None],
    checkpoint: Checkpoint,
) -> None:
    """Runs the steps of a part of the training that are not done yet.

    Args:
        name: name of the part, under which its state is saved.
        count: number of steps.
        step: runs the step of a number from 0; returns values for the progress bar.
        trained: the models.
        others: what else a step changes, such as the optimizer; dropped at the end.
        finish: called after the last step, before the models are saved for good.
        checkpoint: where states are saved.
    """
    state = checkpoint.load(name) or {"step": 0}
    for key, part in {**trained, **others}.items():
        if key in state:
            part.load_state_dict(state[key])
    if state["step"]:
        checkpoint.log(f"{name}: resuming after step {state['step']} of {count}")
    steps = progress_bar(range(state["step"], count), f"training {name}", count, done=state["step"])
    for index in steps:
        steps.set_postfix({key: f"{value:.4f}" for key, value in step(index).items()})
        if checkpoint.should_save() and index + 1 < count:
            parts = {**trained, **others}
            checkpoint.save(name, {"step": index + 1} | {key: part.state_dict() for key, part in parts.items()})
    if state["step"] < count:
        finish()
        checkpoint.save(name, {"step": count} | {key: part.state_dict() for key, part in trained.items()})


def reconstruction_error(vae: AutoencoderKL, images: np.ndarray) -> dict[str, float]:
    """Mean absolute error (of 255) and PSNR (dB) of images, uint8 (N, size, size, 3), after the VAE."""
    import torch

    with torch.inference_mode():
        pixels = torch.cat([_as_pixels(images[i : i + 64], vae.device) for i in range(0, len(images), 64)])
        recon = torch.cat([vae(batch).sample.clamp(-1, 1) for batch in pixels.split(64)])
    error = (recon - pixels) * 127.5
    psnr = 10 * torch.log10(255**2 / error.square().mean(dim=(1, 2, 3))).mean()
    return {"mean_absolute_error": round(float(error.abs().mean()), 3), "psnr_db": round(float(psnr), 2)}


def draw_pool(settings: TextureSettings, seed: int, workers: int) -> tuple[np.ndarray, list[str]]:
    """Draws the pool of textures.

    Returns:
        Images, uint8 (count, size, size, 3), and their captions.
    """
    kinds = textures.invent_kinds(seed, settings.kinds)
    draw = partial(textures.sample, seed, size=settings.image_size, kinds=kinds, kind_share=settings.kind_share)
    images = np.empty((settings.count, settings.image_size, settings.image_size, 3), np.uint8)
    captions = []
    # spawned, because forking a process with torch's threads may hang
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        drawn = pool.map(draw, range(settings.count), chunksize=256)
        for i, (image, caption) in enumerate(progress_bar(drawn, "drawing textures", settings.count)):
            images[i] = image
            captions.append(caption)
    return images, captions


def _as_pixels(images: np.ndarray, device: torch.device) -> torch.Tensor:
    """uint8 (n, size, size, 3) to NCHW float32 in [-1, 1]."""
    return as_batch(images, str(device), images.shape[1]) * 2 - 1


def vae_loss(recon: torch.Tensor, target: torch.Tensor, edge_weight: float) -> torch.Tensor:
    """Mean absolute error of pixels, plus that of neighbour differences at three scales, which keeps edges sharp."""
    import torch.nn.functional as F

    loss = F.l1_loss(recon, target)
    for _ in range(3):
        for dim in (2, 3):
            loss = loss + edge_weight / 3 * F.l1_loss(recon.diff(dim=dim), target.diff(dim=dim))
        recon, target = F.avg_pool2d(recon, 2), F.avg_pool2d(target, 2)
    return loss


def train_vae(vae: AutoencoderKL, images: np.ndarray, settings: VaeSettings, seed: int, checkpoint: Checkpoint) -> None:
    """Trains the VAE in place on rotated and flipped textures, and sets its scaling factor.

    Args:
        vae: the untrained VAE.
        images: uint8 (N, size, size, 3).
        settings: the training.
        seed: seed of order, augmentation and noise.
        checkpoint: saves and resumes.
    """
    import torch

    optimizer = torch.optim.AdamW(vae.parameters(), settings.learning_rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.learning_rate, settings.steps, pct_start=0.05)

    def step(index: int) -> dict[str, float]:
        rng, random = np.random.default_rng([seed, 3, index]), _make_generator(seed, "VAE", index)
        pixels = _as_pixels(augment(images[rng.integers(len(images), size=settings.batch_size)], rng), vae.device)
        with autocast(vae.device.type, "bf16"):
            posterior = vae.encode(pixels).latent_dist
            recon = vae.decode(posterior.sample(random)).sample
        kl = posterior.kl().float().mean() / posterior.mean[0].numel()
        loss = vae_loss(recon.float(), pixels, settings.edge_weight) + settings.kl_weight * kl
        if not loss.isfinite():
            raise TrainingError(f"the VAE's loss is {loss.item()}; lower vae.learning_rate ({settings.learning_rate})")
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        return {"loss": loss.item(), "kl": kl.item()}

    others: dict[str, Stateful] = {"optimizer": optimizer, "schedule": schedule}
    run_steps("VAE", settings.steps, step, {"vae": vae}, others, lambda: None, checkpoint)
    vae.eval()
    latents = encode_images(vae, images[:2048])
    vae.register_to_config(scaling_factor=round(float(1 / latents.std()), 5))


def encode_images(vae: AutoencoderKL, images: np.ndarray) -> torch.Tensor:
    """Encodes images to the means of their unscaled latents, float16 (N, channels, h, w) on the CPU."""
    import torch

    batches = []
    with torch.inference_mode(), autocast(vae.device.type, "bf16"):
        for start in progress_bar(range(0, len(images), 128), "encoding"):
            pixels = _as_pixels(images[start : start + 128], vae.device)
            batches.append(vae.encode(pixels).latent_dist.mean.half().cpu())
    return torch.cat(batches).clone()


def train_unet(
    parts: Parts, latents: torch.Tensor, captions: list[str], settings: BaseSettings, checkpoint: Checkpoint
) -> None:
    """Trains UNet and text encoder together: v-prediction (Salimans and Ho 2022), normal log SNR (Karras et al. 2022), EMA.

    Args:
        parts: the base; UNet and text encoder end with averaged weights.
        latents: scaled, float16 (N, channels, h, w).
        captions: N captions.
        settings: the training.
        checkpoint: saves and resumes.
    """
    batches = _Batches(latents, tokenize(parts.tokenizer, captions), tokenize(parts.tokenizer, [""])[0], settings.unet)
    with training_attention(parts.unet.device.type, math.prod(latents.shape[2:])):
        for number, phase in enumerate(settings.unet.phases, start=1):
            _run_phase(f"UNet, phase {number}", phase, settings, batches, parts, checkpoint)


@dataclass(frozen=True)
class _Batches:
    """Random latents with the tokens of their captions, some of which are empty for classifier-free guidance."""

    latents: torch.Tensor
    tokens: torch.Tensor
    empty: torch.Tensor
    settings: UnetSettings

    def draw(self, random: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents float32 (n, C, h, w) and token ids (n, length) of one step, on the CPU."""
        import torch

        indices = torch.randint(len(self.latents), (self.settings.batch_size,), generator=random)
        ids = self.tokens[indices]
        dropped = torch.rand(len(ids), 1, generator=random) < self.settings.caption_dropout
        return self.latents[indices].float(), torch.where(dropped, self.empty, ids)


def _run_phase(
    name: str, phase: Phase, settings: BaseSettings, batches: _Batches, parts: Parts, checkpoint: Checkpoint
) -> None:
    """Trains for one phase with a new optimizer, then copies the averaged weights into the models."""
    import torch
    from diffusers.training_utils import EMAModel

    scheduler, unet, text_encoder = build_scheduler(), parts.unet, parts.text_encoder
    parameters = [*unet.parameters(), *text_encoder.parameters()]
    optimizer = MuonWithAdamW(unet, text_encoder, phase)
    ema = EMAModel(parameters, decay=settings.unet.ema_decay, use_ema_warmup=True, inv_gamma=1.0, power=0.8)

    def step(index: int) -> dict[str, float]:
        random = _make_generator(settings.seed, name, index)
        clean, ids = (each.to(unet.device) for each in batches.draw(random))
        noise = torch.randn(clean.shape, generator=random).to(unet.device)
        timesteps = draw_timesteps(scheduler, phase.log_snr, len(clean), random).to(unet.device)
        with autocast(unet.device.type, "bf16"):
            hidden = text_encoder(ids).last_hidden_state
            loss = squared_errors(unet, scheduler, clean, noise, timesteps, hidden).mean()
        if not loss.isfinite():
            raise TrainingError(f"the UNet's loss is {loss.item()}; lower unet.phases.learning_rate ({phase.learning_rate})")
        unet.zero_grad()
        text_encoder.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        ema.step(parameters)
        return {"loss": loss.item()}

    trained: dict[str, Stateful] = {"unet": unet, "text_encoder": text_encoder}
    others: dict[str, Stateful] = {"optimizer": optimizer, "ema": ema}
    run_steps(name, phase.steps, step, trained, others, lambda: ema.copy_to(parameters), checkpoint)


def build_scheduler() -> DDIMScheduler:
    """Builds Stable Diffusion's noise schedule with a larger `beta_end`, so that almost no signal is left at the last step.

    With the usual 0.012 the mean of a 16 x 16 latent survives at about one standard deviation, and images sampled from pure
    noise would all have an average colour. v-prediction is well defined at zero signal; epsilon is not.
    """
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.02,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="trailing",
    )


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> torch.Tensor:
    """Token ids, int64 (N, model_max_length), padded and truncated as the pipeline does."""
    return tokenizer(
        captions, padding="max_length", truncation=True, max_length=tokenizer.model_max_length, return_tensors="pt"
    ).input_ids


def save_pipeline(folder: Path, parts: Parts) -> None:
    """Saves the parts as a StableDiffusionPipeline folder with fp16 weights and no safety checker."""
    from diffusers import StableDiffusionPipeline

    vae, text_encoder, unet = (
        copy.deepcopy(part).cpu().half() for part in (parts.vae, parts.text_encoder.eval(), parts.unet.eval())
    )
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=parts.tokenizer,
        unet=unet,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    # by default transformers loads the dtype on disk but diffusers float32, which a plain from_pretrained must not mix
    config = folder / "text_encoder" / "config.json"
    write_json(config, read_json(config) | {"dtype": "float32"})
    # diffusers records where a part was loaded from
    for config in (folder / "unet" / "config.json", folder / "vae" / "config.json"):
        write_json(config, {key: value for key, value in read_json(config).items() if key != "_name_or_path"})


def augment(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Flips and rotates each image (N, size, size, C) at random, by multiples of 90 degrees."""
    return np.stack([np.rot90(image[:, ::-1] if rng.random() < 0.5 else image, int(rng.integers(4))) for image in images])
