"""A Stable Diffusion with random weights, to rehearse a full-size run without a download: it draws noise, at full cost.

`python -m benchmarks.random_base --shape sd15 --out FOLDER` writes a folder in diffusers' layout that stock
StableDiffusionPipeline loads. What a picture shows means nothing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pathsynth.cli.options import FOLDER, reports_errors
from pathsynth.core.errors import DataError
from pathsynth.core.io import read_json, write_json
from pathsynth.core.params import read_yaml

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

PARAMS = Path(__file__).parent.parent / "params.yaml"
MAX_TOKENS = 77
WORD_END = "</w>"
# Words for prompts that params.yaml does not know yet, so that these stay far from the limit, too.
MORE_WORDS = (
    "a photo of the tissue section stained with haematoxylin and eosin, showing cells, nuclei, glands, vessels, fibres, fat, "
    "inflammation, necrosis, tumour, benign, malignant, blurry, low quality, text, watermark, not, very, high, in, on, at, by"
)

UNET_BLOCKS = {
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "layers_per_block": 2,
}
VAE_BLOCKS = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "scaling_factor": 0.18215,
}
SMALL_UNET = UNET_BLOCKS | {"sample_size": 8, "block_out_channels": (32, 32, 64, 64), "norm_num_groups": 8}
SMALL_VAE = VAE_BLOCKS | {"sample_size": 64, "block_out_channels": (16, 16, 32, 32), "norm_num_groups": 8}
NOISE_SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "steps_offset": 1,
    "set_alpha_to_one": False,
    # PNDM does not read it, but the schedulers that are made from its configuration do
    "clip_sample": False,
}
PNDM = ("PNDMScheduler", NOISE_SCHEDULE | {"skip_prk_steps": True, "prediction_type": "epsilon"})
# diffusers reads a UNet's `attention_head_dim` as its number of heads
SHAPES: dict[str, dict[str, Any]] = {
    "sd15": {
        "unet": UNET_BLOCKS
        | {
            "sample_size": 64,
            "block_out_channels": (320, 640, 1280, 1280),
            "attention_head_dim": 8,
            "cross_attention_dim": 768,
        },
        "vae": VAE_BLOCKS | {"sample_size": 512, "block_out_channels": (128, 256, 512, 512)},
        "text_encoder": {
            "vocab_size": 49408,
            "hidden_size": 768,
            "intermediate_size": 3072,
            "projection_dim": 768,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
        },
        "scheduler": PNDM,
    },
    "sd15_small": {
        "unet": SMALL_UNET | {"attention_head_dim": 4, "cross_attention_dim": 32},
        "vae": SMALL_VAE,
        "text_encoder": {"hidden_size": 32, "intermediate_size": 96, "projection_dim": 32, "num_hidden_layers": 2},
        "scheduler": PNDM,
    },
    "sd2_small": {
        "unet": SMALL_UNET
        | {
            "attention_head_dim": (1, 2, 4, 8),
            "cross_attention_dim": 48,
            "use_linear_projection": True,
            "upcast_attention": True,
        },
        "vae": SMALL_VAE,
        "text_encoder": {
            "hidden_size": 48,
            "intermediate_size": 96,
            "projection_dim": 32,
            "num_hidden_layers": 2,
            "hidden_act": "gelu",
        },
        "scheduler": ("DDIMScheduler", NOISE_SCHEDULE | {"prediction_type": "v_prediction"}),
    },
}


@click.command()
@click.option("--shape", type=click.Choice(list(SHAPES)), default="sd15", show_default=True)
@click.option("--out", type=FOLDER, required=True, help="Folder to write, new or empty.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True)
@click.option("--dtype", type=click.Choice(["fp16", "fp32"]), default="fp16", show_default=True, help="Format on disk.")
@click.option("--variant", help="Part of the weights' file names, such as fp16.")
@reports_errors
def main(shape, out, seed, dtype, variant):
    """Writes a Stable Diffusion with random weights."""
    counts = random_base(out, shape, seed, dtype, variant)
    for part, count in counts.items():
        click.echo(f"{part}: {count / 1e6:.2f} M parameters")


def random_base(folder: Path, shape: str, seed: int = 0, dtype: str = "fp16", variant: str | None = None) -> dict[str, int]:
    """Writes a pipeline of `SHAPES[shape]` into `folder`; the same seed gives the same bytes.

    Weights are those of untrained layers, each scaled for its width, so pictures are finite. At full size the text encoder
    knows as many tokens as CLIP's, though the tokenizer has fewer, and writing takes 5 GB of memory.

    Args:
        folder: new or empty.
        shape: a key of `SHAPES`.
        seed: of the weights.
        dtype: `fp16` or `fp32`, the format on disk.
        variant: part of the weights' file names, or None.

    Returns:
        The number of parameters of `unet`, `vae` and `text_encoder`.

    Raises:
        DataError: the folder holds something.
    """
    import torch
    from diffusers import StableDiffusionPipeline
    from transformers.utils.logging import disable_progress_bar

    if folder.exists() and any(folder.iterdir()):
        raise DataError(folder, "is not empty; name a new folder")
    tokenizer = prompt_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = build_parts(shape, tokenizer)
    number_format = {"fp16": torch.float16, "fp32": torch.float32}[dtype]
    models = {name: parts[name].to(number_format) for name in ("unet", "vae", "text_encoder")}
    unwanted = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    disable_progress_bar()
    pipeline = StableDiffusionPipeline(**parts, tokenizer=tokenizer, **unwanted)
    pipeline.save_pretrained(folder, safe_serialization=True, variant=variant)
    # transformers would compute in the format on disk, and diffusers in float32: a plain from_pretrained must not mix them
    config = folder / "text_encoder" / "config.json"
    write_json(config, read_json(config) | {"dtype": "float32"})
    return {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()}


def build_parts(shape: str, tokenizer: CLIPTokenizer) -> dict[str, Any]:
    """The untrained UNet, VAE, text encoder and scheduler of a shape, in evaluation mode."""
    import diffusers
    from transformers import CLIPTextConfig, CLIPTextModel

    settings = SHAPES[shape]
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text = {"vocab_size": len(tokenizer), "num_attention_heads": 4, **settings["text_encoder"], **special}
    kind, schedule = settings["scheduler"]
    return {
        "unet": diffusers.UNet2DConditionModel(**settings["unet"]).eval(),
        "vae": diffusers.AutoencoderKL(**settings["vae"]).eval(),
        "text_encoder": CLIPTextModel(CLIPTextConfig(max_position_embeddings=MAX_TOKENS, **text)).eval(),
        "scheduler": getattr(diffusers, kind).from_config(schedule),
    }


def prompt_tokenizer() -> CLIPTokenizer:
    """CLIP's kind of tokenizer, learnt from the prompts of params.yaml, so that each of their words is one token.

    Other words fall apart into pieces, down to letters. The same prompts give the same tokens in every process, which takes
    some care: pairs that are equally frequent are learnt in the order of their ids, and the learner numbers the last letters
    of words in an order of its own, unless they have their ids before.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    learner = Tokenizer(models.BPE(end_of_word_suffix=WORD_END))
    learner.normalizer = normalizers.Lowercase()
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    numbered = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}{WORD_END}" for letter in letters)]
    trainer = trainers.BpeTrainer(special_tokens=numbered, end_of_word_suffix=WORD_END, min_frequency=1, show_progress=False)
    learner.train_from_iterator([*prompts(), MORE_WORDS], trainer)
    model = json.loads(learner.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    return CLIPTokenizer(vocab=model["vocab"], merges=merges, model_max_length=MAX_TOKENS)


def prompts() -> list[str]:
    """All texts of params.yaml that a text encoder reads; the template with every label of its benchmark's descriptions."""
    found: list[str] = []
    for benchmark in read_yaml(PARAMS)["benchmarks"].values():
        described = benchmark["prompts"]["described"]
        found += described.values()
        found += [benchmark["prompts"]["plain"].replace("{label}", slug.replace("_", " ")) for slug in described]
        found.append(benchmark["generation"]["negative_prompt"])
    return [text for text in dict.fromkeys(found) if text]


if __name__ == "__main__":
    main()
