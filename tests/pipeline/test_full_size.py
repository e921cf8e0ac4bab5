"""The committed configurations for a GPU, made small: downloaded from a local server, and run through every stage."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import medmnist
import numpy as np
import pytest
import torch
from conftest import ROOT, medmnist_archive, run_graph, run_stage, tiny_lora, write_params
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from loopback import Server

from benchmarks.random_base import SHAPES, prompts, random_base
from pathsynth.core.errors import OutOfMemory
from pathsynth.core.metric_files import read_details
from pathsynth.core.params import merge_list, read_yaml, resolve_lora
from pathsynth.data import labels
from pathsynth.data.prepared import open_prepared, write_prepared
from pathsynth.diffusion.adapter import add_lora
from pathsynth.diffusion.base import load_base
from pathsynth.finetuning.settings import LoraSettings
from pathsynth.finetuning.train import train_lora
from pathsynth.generation.sampler import Sampler
from pathsynth.generation.settings import SamplerSettings
from pathsynth.sources import phantom

pytestmark = pytest.mark.slow

PARAMS = read_yaml(ROOT / "params.yaml")
SINGLE_LABEL_SETS = [name for name in medmnist.INFO if not name.endswith("3d") and name != "chestmnist"]
FULL_SIZE_LORAS = [name for name in PARAMS["loras"] if name.startswith(("paper_", "sd_"))]


def read_config(kind: str, name: str) -> dict:
    return read_yaml(ROOT / "configs" / kind / f"{name}.yaml")


def small_tree(name: str, lora: str, root: Path) -> dict:
    """The committed params with a benchmark and a LoRA configuration at toy sizes and step counts."""
    small = {"weights": "none", "input_size": 32, "epochs": 1, "batch_size": 8}
    benchmark = read_config("benchmarks", name) | {"prompts": read_config("prompts", name)}
    benchmark["dataset"] += [{"archive_size": 28, "image_size": 64, "root": str(root)}]
    benchmark["classifiers"]["gate"] += [small]
    benchmark["classifiers"]["judge"] += [small | {"architecture": "shufflenet_v2_x0_5"}]
    benchmark["generation"] |= {"images_per_tissue": 2, "filter": {"max_attempts": 2, "quota": 0.0}}
    benchmark["generation"]["sampler"] += [{"num_inference_steps": 2, "batch_size": 4}]
    usefulness = merge_list(benchmark["evaluation"]["usefulness"])
    benchmark["evaluation"]["usefulness"] = usefulness | {"repeats": 2, "classifier": [*usefulness["classifier"], small]}
    training = {"max_train_steps": 2, "train_batch_size": 2, "gradient_accumulation_steps": 2}
    configuration = [*PARAMS["loras"][lora], {"training": training, "schedule": {"warmup_steps": 0}}]
    return PARAMS | {"benchmark": name, "benchmarks": {name: benchmark}, "lora": lora, "loras": {lora: configuration}}


def serve_archive(server: Server, flag: str, monkeypatch: pytest.MonkeyPatch) -> None:
    content = medmnist_archive(flag, per_label=3)
    monkeypatch.setitem(medmnist.INFO[flag], "url", server.add_file(f"/records/{flag}.npz", content))
    monkeypatch.setitem(medmnist.INFO[flag], "MD5", hashlib.md5(content).hexdigest())


class TestCommittedBenchmarks:
    @pytest.mark.parametrize(("name", "lora"), [("pathmnist", "paper_v9"), ("breastmnist", "sd_r16_no_flip")])
    def test_every_stage_runs(self, name, lora, server, sd15_base, tmp_path, monkeypatch):
        base = merge_list(read_config("benchmarks", name)["base"])
        repository, revision = base["pretrained_model_name_or_path"], base["revision"]
        server.add_repo(repository, sd15_base, revision)
        serve_archive(server, name, monkeypatch)
        run_graph(tmp_path, write_params(tmp_path / "params.yaml", small_tree(name, lora, tmp_path / "root")))
        slugs = [labels.slugify(label) for label in labels.medmnist_labels(name)]
        scores = read_details(tmp_path / "metrics" / "evaluation.json")
        raw_scores = scores["sets"]["raw"]
        assert list(raw_scores["gate"]["per_tissue"]) == slugs and raw_scores["n_images"] == 2 * len(slugs)
        with np.load(tmp_path / "data" / "generated" / "raw.npz") as raw:
            assert raw["train_images"].shape == (2 * len(slugs), 64, 64, *((3,) if name == "pathmnist" else ()))
        report = (tmp_path / "reports" / "report.html").read_text()
        assert "0.6727" not in report, "the paper's score stands only beside its own data and size"
        card = (tmp_path / "models" / "lora" / "README.md").read_text()
        assert f'from_pretrained("{repository}", revision="{revision}"' in card

    @pytest.mark.parametrize("flag", SINGLE_LABEL_SETS)
    def test_every_single_label_set_of_medmnist_can_be_prepared(self, flag, server, tmp_path, monkeypatch):
        serve_archive(server, flag, monkeypatch)
        info, slugs = medmnist.INFO[flag], [labels.slugify(label) for label in labels.medmnist_labels(flag)]
        tree = small_tree("pathmnist", "paper_v9", tmp_path / "root")
        benchmark = tree["benchmarks"]["pathmnist"]
        benchmark["dataset"] += [{"flag": flag, "labels": flag, "channels": info["n_channels"]}]
        benchmark["prompts"] = {"plain": "a picture of {label}", "described": {slug: f"a picture of {slug}" for slug in slugs}}
        benchmark["prompts"]["paraphrased"] = {slug: [f"{slug} in a picture", f"a {slug} picture"] for slug in slugs}
        result = run_stage("prepare", "--params", write_params(tmp_path / "params.yaml", tree), "--out", tmp_path / "prepared")
        assert result.exit_code == 0, result.output
        card = json.loads((tmp_path / "prepared" / "card.json").read_text())
        assert card["slugs"] == slugs and card["channels"] == info["n_channels"]
        assert card["labels"] == [info["label"][str(number)] for number in range(len(slugs))]
        assert str(tmp_path) not in json.dumps(card)

    def test_prompts_are_shorter_than_clip_reads(self):
        """Words and commas; by CLIP's own vocabulary, which is not here, the longest prompt had 61 tokens of 77."""
        assert max(len(prompt.replace(",", " ,").split()) for prompt in prompts()) <= 50


@pytest.mark.parametrize("name", FULL_SIZE_LORAS)
def test_lora_targets_exist_in_stable_diffusion_with_the_papers_number_of_parameters(name):
    settings = LoraSettings.model_validate(resolve_lora(ROOT / "params.yaml", PARAMS, name))
    with torch.device("meta"):
        trainable = add_lora(UNet2DConditionModel(**SHAPES["sd15"]["unet"]), settings.adapter)
    if name.startswith("paper_"):
        assert sum(parameter.numel() for parameter in trainable) == 797_184


class TestStableDiffusionShapes:
    def test_v_prediction_base_of_stable_diffusion_2_trains(self, tmp_path):
        random_base(tmp_path / "base", "sd2_small")
        splits = {split: phantom.draw_split(1, 7, 64, split) for split in ("train", "val", "test")}
        write_prepared(tmp_path / "prepared", "tiny", labels.PATHMNIST, splits, {"source": "phantom"}, 64)
        prepared, pipeline = open_prepared(tmp_path / "prepared"), load_base(tmp_path / "base", "cpu")
        settings = LoraSettings.model_validate(tiny_lora())
        result = train_lora(
            pipeline, prepared, list(labels.PATHMNIST), settings, 3, lambda *_: None, scratch=tmp_path / "scratch"
        )
        assert 0.1 < result["loss"] < 10

    def test_out_of_memory_in_sampling_names_the_batch_size(self, sd15_base, monkeypatch):
        def run_out(*_args, **_kwargs):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

        settings = SamplerSettings.model_validate(read_config("benchmarks", "pathmnist")["generation"]["sampler"])
        sampler = Sampler(load_base(sd15_base, "cpu"), ["tissue"], settings, 1, 64)
        monkeypatch.setattr(StableDiffusionPipeline, "__call__", run_out)
        with pytest.raises(OutOfMemory, match=r"out of memory: lower generation\.sampler\.batch_size \(16\)"):
            sampler.sample([0], [1])
