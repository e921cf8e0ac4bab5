"""Settings of the bundled base's training, read from base/params.yaml."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from pathsynth.core.params import Fraction, NonNegative, Positive, PositiveInt, Section
from pathsynth.diffusion.settings import LogSnr

Widths = Annotated[list[PositiveInt], Field(min_length=2)]


class TextureSettings(Section):
    """The textures: their number, size in pixels and fraction of invented kinds, and the tokenizer's size and length."""

    count: PositiveInt
    image_size: Annotated[int, Field(ge=32, multiple_of=8)]
    kinds: PositiveInt
    kind_share: Fraction
    vocab_size: Annotated[int, Field(ge=600)]
    max_length: Annotated[int, Field(ge=16, le=77)]


class VaeSettings(Section):
    """Architecture and training of the VAE; `edge_weight` and `kl_weight` weight terms of its loss."""

    block_out_channels: Widths
    layers_per_block: PositiveInt
    latent_channels: PositiveInt
    norm_num_groups: PositiveInt
    steps: PositiveInt
    batch_size: PositiveInt
    learning_rate: Positive
    edge_weight: NonNegative
    kl_weight: NonNegative


class Phase(Section):
    """A phase of the UNet's training, one learning-rate cycle with warm-up."""

    steps: PositiveInt
    learning_rate: Positive
    warmup_steps: PositiveInt
    log_snr: LogSnr

    @model_validator(mode="after")
    def _check_warmup(self) -> Self:
        if self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps must be less than steps ({self.steps})")
        return self


class UnetSettings(Section):
    """Architecture and training of the UNet and the text encoder."""

    block_out_channels: Widths
    layers_per_block: PositiveInt
    attention_heads: PositiveInt
    norm_num_groups: PositiveInt
    text_width: PositiveInt
    text_layers: PositiveInt
    phases: Annotated[list[Phase], Field(min_length=1)]
    batch_size: PositiveInt
    ema_decay: Annotated[float, Field(gt=0, lt=1)]
    caption_dropout: Fraction


class BaseSettings(Section):
    """All of base/params.yaml."""

    seed: Annotated[int, Field(ge=0)]
    textures: TextureSettings
    vae: VaeSettings
    unet: UnetSettings
