"""The model card that lies beside every adapter."""

from __future__ import annotations

import json

from pathsynth.core.io import shown_path
from pathsynth.data.prepared import Prepared
from pathsynth.data.provenance import DATA_LICENCES, data_source, markdown_cell
from pathsynth.data.settings import AnyDataset
from pathsynth.diffusion.adapter import WEIGHTS
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
- trainable parameters: {trainable_parameters:,}; images seen: {images_seen:,}; loss over the last tenth: {loss:.4f}
- settings: `lora_config.json`; seed {seed}

```python
from diffusers import StableDiffusionPipeline

pipeline = StableDiffusionPipeline.from_pretrained({load}, safety_checker=None)
pipeline.load_lora_weights("models/lora", weight_name="{weights}")
image = pipeline({example}).images[0]
```

## Prompts

| tissue | prompt |
|---|---|
{rows}
"""


def model_card(
    name: str,
    seed: int,
    settings: LoraSettings,
    base: BaseModelSettings,
    dataset: AnyDataset,
    prepared: Prepared,
    result: dict,
    prompts: list[str],
) -> str:
    """Fills in the model card.

    Args:
        name: of the LoRA configuration.
        seed: global seed.
        settings: the configuration.
        base: what it was trained on top of.
        dataset: where the images come from.
        prepared: the images.
        result: what `train_lora` returned.
        prompts: one per tissue, in the order of labels.
    """
    rows = "\n".join(
        f"| {markdown_cell(label)} | {markdown_cell(prompt)} |" for label, prompt in zip(prepared.labels, prompts, strict=True)
    )
    return _CARD.format(
        lora=name,
        dataset=prepared.name,
        base=base_name(base),
        base_licence=base_licence(base),
        source=data_source(dataset),
        licence=DATA_LICENCES[dataset.source],
        load=_arguments(base),
        images=len(prepared.labels_of("train")),
        size=prepared.image_size,
        prompts=settings.prompts,
        seed=seed,
        weights=WEIGHTS,
        example=json.dumps(prompts[0], ensure_ascii=False),
        rows=rows,
        **result,
    )


def _arguments(base: BaseModelSettings) -> str:
    """What `from_pretrained` is given to load the base."""
    name = base.pretrained_model_name_or_path
    options = {"revision": base.revision, "variant": base.variant}
    shown = json.dumps(name if base.revision else shown_path(name), ensure_ascii=False)
    given = [shown, *(f'{key}="{value}"' for key, value in options.items() if value)]
    return ", ".join(given)
