"""The model card of an adapter."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from pathsynth.core.io import portable_path
from pathsynth.data.prepared import Prepared
from pathsynth.data.provenance import data_licence, data_source, escape_markdown
from pathsynth.data.settings import AnyDataset
from pathsynth.diffusion.adapter import SNAPSHOTS, WEIGHTS
from pathsynth.diffusion.base import base_licence, base_name
from pathsynth.diffusion.settings import BaseModelSettings
from pathsynth.finetuning.settings import LoraSettings

_CARD = """\
---
library_name: diffusers
tags: [lora, text-to-image, pathsynth]
---

# LoRA `{lora}` for {dataset}

Research only. Not for diagnosis. Every image made with it is synthetic.

- base: `{base}`; licence: {base_licence}
- trained on: {images} images of {dataset}, {size} px, train split only: {source}; licence: {licence}
- prompt set: `{prompts}`
- trained for {steps}
- trainable parameters: {trainable_parameters:,}; images seen: {images_seen:,}; loss over the last tenth: {loss:.4f}
- settings: `lora_config.json`; training seed {seed}

```python
from diffusers import StableDiffusionPipeline

pipeline = StableDiffusionPipeline.from_pretrained({load}, safety_checker=None)
pipeline.load_lora_weights("{folder}", weight_name="{weights}")
image = pipeline({example}).images[0]
```

## ComfyUI and AUTOMATIC1111

```
python -m pathsynth export{option} --format kohya --out {lora}.safetensors
```

Copy the file to `models/loras` of ComfyUI or `models/Lora` of AUTOMATIC1111. It fits only the base it was trained on, `{base}`.
pathsynth's bundled base, `base`, is not Stable Diffusion 1.5, and these programs do not load it.{dora}

## Prompts

| tissue | prompt |
|---|---|
{rows}
"""
_DORA = """
This is a DoRA, which each program applies differently. So the differences of the weights are exported: this needs the base, the
file has hundreds of megabytes, and diffusers does not read it."""


@dataclass(frozen=True)
class LoraRecipe:
    """How an adapter was trained; `name` is that of the LoRA configuration, `prompts` has one prompt per tissue."""

    name: str
    settings: LoraSettings
    base: BaseModelSettings
    dataset: AnyDataset
    prompts: list[str]
    seed: int


def model_card(recipe: LoraRecipe, prepared: Prepared, result: Mapping[str, float | int], snapshot: int | None = None) -> str:
    """Renders the model card.

    Args:
        recipe: how the adapter was trained.
        prepared: the training images.
        result: returned by `pathsynth.finetuning.result.summarize_steps`.
        snapshot: the step of an adapter from before the end of the training.
    """
    count = recipe.settings.training.max_train_steps
    folder = "models/lora" if snapshot is None else f"models/lora/{SNAPSHOTS}/{snapshot}"
    pairs = zip(prepared.labels, recipe.prompts, strict=True)
    return _CARD.format(
        lora=recipe.name,
        dataset=prepared.name,
        base=base_name(recipe.base),
        base_licence=base_licence(recipe.base),
        source=data_source(recipe.dataset),
        licence=data_licence(recipe.dataset),
        load=_from_pretrained_arguments(recipe.base),
        images=len(prepared.labels_of("train")),
        size=prepared.image_size,
        prompts=recipe.settings.prompts,
        seed=recipe.seed,
        weights=WEIGHTS,
        example=json.dumps(recipe.prompts[0], ensure_ascii=False),
        dora=_DORA if recipe.settings.adapter.use_dora else "",
        steps=f"{count} steps" if snapshot is None else f"{snapshot} of {count} steps",
        folder=folder,
        option="" if snapshot is None else f" --lora {folder}",
        rows="\n".join(f"| {escape_markdown(label)} | {escape_markdown(prompt)} |" for label, prompt in pairs),
        **result,
    )


def _from_pretrained_arguments(base: BaseModelSettings) -> str:
    """Arguments of `from_pretrained` that load the base."""
    name = base.pretrained_model_name_or_path
    options = {"revision": base.revision, "variant": base.variant}
    path = json.dumps(name if base.revision else portable_path(name), ensure_ascii=False)
    return ", ".join([path, *(f'{key}="{value}"' for key, value in options.items() if value)])
