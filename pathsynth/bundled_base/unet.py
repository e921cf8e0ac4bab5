"""Trains UNet and text encoder on encoded textures."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pathsynth.bundled_base.models import build_scheduler
from pathsynth.bundled_base.optimizer import MuonWithAdamW
from pathsynth.bundled_base.parts import Parts
from pathsynth.bundled_base.settings import BaseSettings, Phase, UnetSettings
from pathsynth.bundled_base.steps import Stateful, run_steps, step_generator
from pathsynth.core.checkpoint import Checkpoint
from pathsynth.core.devices import autocast, training_attention
from pathsynth.core.errors import TrainingError
from pathsynth.diffusion.denoising import squared_errors
from pathsynth.diffusion.noise_levels import draw_timesteps

if TYPE_CHECKING:
    import torch
    from transformers import CLIPTokenizer


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
        random = step_generator(settings.seed, name, index)
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


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> torch.Tensor:
    """Token ids, int64 (N, model_max_length), padded and truncated as the pipeline does."""
    return tokenizer(
        captions, padding="max_length", truncation=True, max_length=tokenizer.model_max_length, return_tensors="pt"
    ).input_ids
