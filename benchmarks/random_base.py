"""A Stable Diffusion with random weights, to rehearse a full-size run without a download: it draws noise, at full cost.

`python -m benchmarks.random_base --shape sd15 --out FOLDER` writes a folder that stock StableDiffusionPipeline loads.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pathsynth.cli.options import FOLDER, run_as_command
from pathsynth.core.errors import DataError
from pathsynth.core.io import read_json, write_json
from pathsynth.core.params import PROMPTS, merge_list, read_yaml

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

ROOT = Path(__file__).parent.parent
MAX_TOKENS = 77
WORD_END = "</w>"

VAE = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4, "layers_per_block": 2}
SMALL_VAE = VAE | {"sample_size": 64, "block_out_channels": (16, 16, 32, 32), "norm_num_groups": 8}
SMALL_UNET = {"sample_size": 8, "block_out_channels": (32, 32, 64, 64), "norm_num_groups": 8}
SMALL_TEXT = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96, "projection_dim": 32}
SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "clip_sample": False,  # PNDM ignores it, but schedulers that are built from its config do not
}
PNDM = ("PNDMScheduler", SCHEDULE | {"skip_prk_steps": True, "prediction_type": "epsilon"})
DDIM = ("DDIMScheduler", SCHEDULE | {"prediction_type": "v_prediction"})
# What differs from the defaults of the classes, which are Stable Diffusion 1.5's for the UNet. diffusers reads a UNet's
# `attention_head_dim` as its number of heads.
SHAPES: dict[str, dict[str, Any]] = {
    "sd15": {
        "unet": {"sample_size": 64, "cross_attention_dim": 768},
        "vae": VAE | {"sample_size": 512, "block_out_channels": (128, 256, 512, 512)},
        "text_encoder": {"vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
        "scheduler": PNDM,
    },
    "sd15_small": {
        "unet": SMALL_UNET | {"attention_head_dim": 4, "cross_attention_dim": 32},
        "vae": SMALL_VAE,
        "text_encoder": SMALL_TEXT | {"hidden_size": 32},
        "scheduler": PNDM,
    },
    "sd2_small": {
        "unet": SMALL_UNET | {"attention_head_dim": (1, 2, 4, 8), "cross_attention_dim": 48, "use_linear_projection": True},
        "vae": SMALL_VAE,
        "text_encoder": SMALL_TEXT | {"hidden_size": 48, "hidden_act": "gelu"},
        "scheduler": DDIM,
    },
}


@click.command()
@click.option("--shape", type=click.Choice(list(SHAPES)), default="sd15", show_default=True)
@click.option("--out", type=FOLDER, required=True, help="A new or empty folder.")
@run_as_command
def main(shape: str, out: Path) -> None:
    """Writes a Stable Diffusion with random weights in fp16."""
    random_base(out, shape)


def random_base(folder: Path, shape: str, dtype: str = "fp16", variant: str | None = None) -> None:
    """Writes a pipeline of untrained layers in diffusers' layout; always the same bytes.

    At full size this takes 5 GB of memory, and the text encoder has CLIP's vocabulary size although the tokenizer has fewer.

    Args:
        folder: new or empty.
        shape: a key of `SHAPES`.
        dtype: `fp16` or `fp32`, the format on disk.
        variant: part of the weights' file names, or None.

    Raises:
        DataError: the folder is not empty.
    """
    import torch
    from diffusers import StableDiffusionPipeline
    from transformers.utils.logging import disable_progress_bar

    if folder.exists() and any(folder.iterdir()):
        raise DataError(folder, "is not empty; name a new folder")
    tokenizer = prompt_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts = build_parts(shape, tokenizer)
    for name in ("unet", "vae", "text_encoder"):
        parts[name].to({"fp16": torch.float16, "fp32": torch.float32}[dtype])
    disable_progress_bar()
    pipeline = StableDiffusionPipeline(
        **parts, tokenizer=tokenizer, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    pipeline.save_pretrained(folder, safe_serialization=True, variant=variant)
    # transformers would load the format on disk and diffusers float32, which a plain from_pretrained must not mix
    config = folder / "text_encoder" / "config.json"
    write_json(config, read_json(config) | {"dtype": "float32"})


def build_parts(shape: str, tokenizer: CLIPTokenizer) -> dict[str, Any]:
    """The untrained UNet, VAE, text encoder and scheduler of a shape, in evaluation mode."""
    import diffusers
    from transformers import CLIPTextConfig, CLIPTextModel

    settings = SHAPES[shape]
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": MAX_TOKENS, **settings["text_encoder"], **special}
    scheduler, schedule = settings["scheduler"]
    return {
        "unet": diffusers.UNet2DConditionModel(**settings["unet"]).eval(),
        "vae": diffusers.AutoencoderKL(**settings["vae"]).eval(),
        "text_encoder": CLIPTextModel(CLIPTextConfig(**text)).eval(),
        "scheduler": getattr(diffusers, scheduler).from_config(schedule),
    }


def prompt_tokenizer() -> CLIPTokenizer:
    """A tokenizer of CLIP's kind in which each word of the committed prompts is one token.

    Bytes and word ends are given ids beforehand: the trainer would number the word ends in an order that varies.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix=WORD_END))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    numbered = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}{WORD_END}" for letter in letters)]
    trainer = trainers.BpeTrainer(special_tokens=numbered, end_of_word_suffix=WORD_END, min_frequency=1, show_progress=False)
    tokenizer.train_from_iterator(prompts(), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    return CLIPTokenizer(vocab=model["vocab"], merges=merges, model_max_length=MAX_TOKENS)


def prompts() -> list[str]:
    """All prompts under configs/prompts, the template with the name of each class."""
    texts: list[str] = []
    for path in sorted((ROOT / PROMPTS).glob("*.yaml")):
        tree = read_yaml(path)
        described = merge_list(tree["described"])
        texts += [tree["plain"].replace("{label}", slug.replace("_", " ")) for slug in described]
        texts += described.values()
        texts += [sentence for sentences in merge_list(tree["paraphrased"]).values() for sentence in sentences]
    return list(dict.fromkeys(texts))


if __name__ == "__main__":
    main()
