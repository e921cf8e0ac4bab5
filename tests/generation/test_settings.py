"""Generation settings: a LoRA configuration replaces number formats and batch size of the benchmark's sampler."""

from __future__ import annotations

from dataclasses import replace

import pytest
from conftest import ROOT

from pathsynth.core.errors import ParamsError
from pathsynth.core.params import Params, load_params, read_yaml, resolve_lora
from pathsynth.generation.settings import GenerationSettings, read_generation

PATH = ROOT / "params.yaml"


def select(lora: str) -> Params:
    """The committed parameters with PathMNIST and a LoRA configuration."""
    return replace(
        load_params(PATH), benchmark_name="pathmnist", lora_name=lora, lora=resolve_lora(PATH, read_yaml(PATH), lora)
    )


def test_only_configurations_that_ask_for_it_use_the_fast_formats():
    papers = read_generation(select("paper_v9"))
    assert papers == select("sd_r16").section("generation", GenerationSettings)
    assert papers.sampler.weight_dtype == "fp32" and not papers.sampler.tf32
    fast = read_generation(select("sd_r16"))
    changed = {"weight_dtype": "bf16", "mixed_precision": "no", "batch_size": 48}
    assert fast.sampler.model_dump() == papers.sampler.model_dump() | changed
    assert fast == papers.model_copy(update={"sampler": fast.sampler})


def test_key_is_where_a_value_is_set():
    papers, fast = (read_generation(select(lora)).sampler for lora in ("paper_v9", "sd_r16"))
    assert papers.key("batch_size") == "generation.sampler.batch_size"
    assert fast.key("batch_size") == "generation.sampler.fast.batch_size"
    assert fast.fast.tf32 is None and fast.key("tf32") == "generation.sampler.tf32"


@pytest.mark.parametrize(("fast", "problem"), [
    ({"guidance_scale": 1.0}, r"\.guidance_scale: unknown key; allowed: batch_size, mixed_precision, weight_dtype, tf32"),
    ({"batch_size": 0}, r"\.batch_size: 0: input should be greater than 0"),
    ({"weight_dtype": "bf16", "mixed_precision": "fp16"}, r": weight_dtype: 'bf16' needs mixed_precision: no or bf16"),
])  # fmt: skip
def test_invalid_formats_are_named(fast, problem, monkeypatch):
    params = select("sd_r16")
    generation = dict(params.benchmark["generation"])
    generation["sampler"] = [*generation["sampler"], {"fast": fast}]
    monkeypatch.setitem(params.__dict__, "benchmark", {**params.benchmark, "generation": generation})
    with pytest.raises(ParamsError, match=rf"pathmnist.yaml: generation.sampler.fast{problem}"):
        read_generation(params)
