"""The model card that lies beside every adapter."""

from __future__ import annotations

import json

from pathsynth.cards import DATA_LICENCES, base_licence, base_name, cell, data_source
from pathsynth.files import shown_path
from pathsynth.lora import WEIGHTS
from pathsynth.prepared import Prepared
from pathsynth.settings import BaseModelSettings, Params

_CARD = """\
---
library_name: diffusers
tags: [lora, text-to-image, pathsynth]
---

# LoRA `{lora}` for {name}

Research only. Not for diagnosis. Every image made with it is synthetic.

- base: `{base}`; licence: {base_licence}
- trained on: {images} images of {name}, {size} px, train split only: {source}; licence: {licence}
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


def model_card(params: Params, prepared: Prepared, prompts: list[str], result: dict) -> str:
    """Fills the card with what was trained on what, and how it is used."""
    rows = "\n".join(f"| {cell(label)} | {cell(prompt)} |" for label, prompt in zip(prepared.labels, prompts, strict=True))
    return _CARD.format(
        lora=params.lora_name,
        name=prepared.name,
        base=base_name(params.benchmark.base),
        base_licence=base_licence(params.benchmark.base),
        source=data_source(params),
        licence=DATA_LICENCES[params.benchmark.dataset.source],
        load=_arguments(params.benchmark.base),
        images=len(prepared.labels_of("train")),
        size=prepared.image_size,
        prompts=params.lora.prompts,
        seed=params.seed,
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
