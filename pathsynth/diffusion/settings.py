"""Settings that several packages share: base model, prompts, LoRA adapter and noise levels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from pathsynth.core.errors import ParamsError
from pathsynth.core.params import HubModel, Positive, PositiveInt, Section, ShareBelowOne, merge_list
from pathsynth.data.settings import Dataset

# The prompt sets that a LoRA may be trained with.
PromptSet = Literal["plain", "described"]
Sentence = Annotated[str, Field(min_length=1)]
Paraphrases = Annotated[list[Sentence], Field(min_length=2, max_length=2)]


class BaseModelSettings(HubModel):
    """The pretrained Stable Diffusion in diffusers' layout; `variant` is a suffix of its weight files, such as `fp16`."""

    variant: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")] | None = None


class Prompts(Section):
    """The prompt sets: `plain` is one template with `{label}`, the others have an entry per tissue slug.

    Attributes:
        plain: the template.
        described: a sentence.
        paraphrased: two sentences that say the same in other words. No LoRA is trained with them, so they show how far a LoRA
            depends on the wording.
    """

    plain: str
    described: Annotated[dict[str, Sentence], BeforeValidator(merge_list)]
    paraphrased: Annotated[dict[str, Paraphrases], BeforeValidator(merge_list)]

    @model_validator(mode="after")
    def _check_template(self) -> Self:
        if "{label}" not in self.plain:
            raise ValueError("plain: the template must contain {label}")
        return self

    @model_validator(mode="after")
    def _check_paraphrases(self) -> Self:
        for slug, sentences in self.paraphrased.items():
            if len({self.described.get(slug), *sentences}) != 3:
                raise ValueError(f"paraphrased.{slug}: the sentences must differ from each other and from the described one")
        return self

    def texts(self, name: PromptSet | Literal["paraphrased"], dataset: Dataset) -> list[str]:
        """Returns the prompts in the order of labels: one per tissue, or two of `paraphrased`.

        Raises:
            ParamsError: `described` or `paraphrased` does not have exactly one entry per tissue.
        """
        if name == "plain":
            return [self.plain.replace("{label}", label) for label in dataset.label_names]
        self.check_tissues("prompts", dataset.slugs)
        if name == "described":
            return [self.described[slug] for slug in dataset.slugs]
        return [sentence for slug in dataset.slugs for sentence in self.paraphrased[slug]]

    def check_tissues(self, path: object, slugs: Sequence[str]) -> None:
        """Raises a ParamsError, with the file's path, unless `described` and `paraphrased` have an entry for each tissue."""
        for key, entry in (("described", "one sentence"), ("paraphrased", "two sentences")):
            if wrong := sorted(set(getattr(self, key)) ^ set(slugs)):
                problem = f"needs {entry} for each of {', '.join(slugs)}; missing or unknown: {', '.join(wrong)}"
                raise ParamsError(path, key, problem)


class AdapterSettings(Section):
    """The LoRA adapter, in peft's terms; `target_modules` are full or last names of UNet modules."""

    rank: PositiveInt
    lora_alpha: Positive
    target_modules: Annotated[list[str], Field(min_length=1)]
    lora_dropout: ShareBelowOne = 0.0
    use_rslora: bool = False
    use_dora: bool = False


class LogSnr(Section):
    """Normal distribution of the natural logarithm of the signal-to-noise ratio: mean and standard deviation."""

    mean: float
    deviation: Positive
