"""The untrained parts of the bundled base and its noise schedule: small instances of diffusers' and transformers' classes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from pathsynth.bundled_base.settings import TextureSettings, UnetSettings, VaeSettings

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer


def build_tokenizer(captions: list[str], settings: TextureSettings) -> CLIPTokenizer:
    """Trains a byte-level BPE tokenizer like CLIP's on the captions.

    Unknown words are split into pieces, down to single letters, and so remain distinct.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    special = ["<|startoftext|>", "<|endoftext|>"]
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=special[1]))
    learner.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    learner.decoder = decoders.BPEDecoder(suffix="</w>")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocab_size - len(alphabet),
        special_tokens=special,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        min_frequency=20,
        show_progress=False,
    )
    learner.train_from_iterator(captions, trainer)
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    # in CLIP's order, with a word-final variant of every byte, because the trainer's numbering differs between runs
    tokens = [*special, *alphabet, *(f"{byte}</w>" for byte in alphabet), *("".join(pair) for pair in merges)]
    vocab = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=settings.max_length)


def build_text_encoder(tokenizer: CLIPTokenizer, settings: UnetSettings) -> CLIPTextModel:
    """Builds a CLIP text model for the tokenizer; its hidden states are (N, max_length, text_width)."""
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=settings.text_width,
            intermediate_size=3 * settings.text_width,
            projection_dim=settings.text_width,
            num_hidden_layers=settings.text_layers,
            num_attention_heads=settings.attention_heads,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_vae(settings: VaeSettings, image_size: int) -> AutoencoderKL:
    """Builds Stable Diffusion's VAE without attention, which costs more than it gains at this size."""
    from diffusers import AutoencoderKL

    blocks = len(settings.block_out_channels)
    return AutoencoderKL(
        block_out_channels=tuple(settings.block_out_channels),
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        layers_per_block=settings.layers_per_block,
        latent_channels=settings.latent_channels,
        norm_num_groups=settings.norm_num_groups,
        sample_size=image_size,
        mid_block_add_attention=False,
    )


def build_unet(settings: UnetSettings, latent_channels: int, latent_size: int) -> UNet2DConditionModel:
    """Builds a UNet with plain blocks at full latent resolution and cross-attention below it."""
    from diffusers import UNet2DConditionModel

    below = len(settings.block_out_channels) - 1
    return UNet2DConditionModel(
        sample_size=latent_size,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=tuple(settings.block_out_channels),
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * below,
        up_block_types=("CrossAttnUpBlock2D",) * below + ("UpBlock2D",),
        layers_per_block=settings.layers_per_block,
        # despite its name, diffusers uses it as the number of heads
        attention_head_dim=settings.attention_heads,
        cross_attention_dim=settings.text_width,
        norm_num_groups=settings.norm_num_groups,
    )


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
