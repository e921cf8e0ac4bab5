"""Settings that training and generation share: base model, prompts and LoRA adapter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from pathsynth.core.errors import ParamsError
from pathsynth.core.params import HubModel, Positive, PositiveInt, Section, ShareBelowOne, merge_list
from pathsynth.data.settings import Dataset

PromptSet = Literal["plain", "described"]


class BaseModelSettings(HubModel):
    """The pretrained Stable Diffusion in diffusers' layout; `variant` is a suffix of its weight files, such as `fp16`."""

    variant: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")] | None = None


class Prompts(Section):
    """The prompt sets: `plain` is one template with `{label}`, `described` a sentence per tissue slug."""

    plain: str
    described: Annotated[dict[str, Annotated[str, Field(min_length=1)]], BeforeValidator(merge_list)]

    @model_validator(mode="after")
    def _check_template(self) -> Self:
        if "{label}" not in self.plain:
            raise ValueError("plain: the template must contain {label}")
        return self

    def texts(self, name: PromptSet, dataset: Dataset) -> list[str]:
        """Returns the prompt of every tissue, in the order of labels.

        Raises:
            ParamsError: `described` does not have exactly one sentence per tissue.
        """
        if name == "plain":
            return [self.plain.replace("{label}", label) for label in dataset.label_names]
        self.check_tissues("prompts", dataset.slugs)
        return [self.described[slug] for slug in dataset.slugs]

    def check_tissues(self, path: object, slugs: Sequence[str]) -> None:
        """Raises a ParamsError, with the file's path, unless `described` has exactly one sentence per tissue."""
        if wrong := sorted(set(self.described) ^ set(slugs)):
            problem = f"needs one sentence for each of {', '.join(slugs)}; missing or unknown: {', '.join(wrong)}"
            raise ParamsError(path, "described", problem)


class AdapterSettings(Section):
    """The LoRA adapter, in peft's terms; `target_modules` are full or last names of UNet modules."""

    rank: PositiveInt
    lora_alpha: Positive
    target_modules: Annotated[list[str], Field(min_length=1)]
    lora_dropout: ShareBelowOne = 0.0
    use_rslora: bool = False
    use_dora: bool = False
