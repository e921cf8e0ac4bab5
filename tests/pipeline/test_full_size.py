"""The committed entries for a GPU machine, made small: fetched from a server here, every stage run, no code changed."""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path

import medmnist
import numpy as np
import pytest
from conftest import ROOT, medmnist_archive, run_graph, run_stage, tiny_lora, write_params
from loopback import Server

from benchmarks.random_base import prompts, random_base
from pathsynth.core.errors import ModelError, OutOfMemory
from pathsynth.core.metric_files import read_details
from pathsynth.core.params import read_yaml
from pathsynth.data import labels
from pathsynth.finetuning.settings import LoraSettings

COMMITTED = read_yaml(ROOT / "params.yaml")
FLAT = [name for name in medmnist.INFO if not name.endswith("3d")]
SINGLE_LABEL = [name for name in FLAT if name != "chestmnist"]


def _small(name: str, lora: str, root: Path) -> dict:
    """The tree of params.yaml with an entry of its benchmarks at toy sizes and step counts, and nothing else changed."""
    tree = copy.deepcopy(COMMITTED) | {"benchmark": name, "lora": lora}
    entry = tree["benchmarks"][name]
    entry["dataset"] |= {"archive_size": 28, "image_size": 64, "root": str(root)}
    for role, architecture in (("gate", "resnet18"), ("judge", "shufflenet_v2_x0_5")):
        entry["classifiers"][role] |= {
            "architecture": architecture, "weights": "none", "input_size": 32, "epochs": 1, "batch_size": 8
        }  # fmt: skip
    entry["generation"] |= {"images_per_tissue": 2, "max_attempts": 2, "num_inference_steps": 2, "batch_size": 4}
    entry["evaluation"]["bootstrap_resamples"] = 100
    entry["evaluation"]["usefulness"]["repeats"] = 2
    entry["evaluation"]["usefulness"]["classifier"] |= {"weights": "none", "input_size": 32, "epochs": 1, "batch_size": 8}
    tree["loras"][lora]["training"] |= {"max_train_steps": 2, "train_batch_size": 2, "gradient_accumulation_steps": 2}
    tree["loras"][lora]["schedule"]["warmup_steps"] = 0
    return tree


def _serve(server: Server, flag: str, monkeypatch: pytest.MonkeyPatch, per_label: int = 3) -> None:
    content = medmnist_archive(flag, per_label=per_label)
    monkeypatch.setitem(medmnist.INFO[flag], "url", server.add_file(f"/records/{flag}.npz", content))
    monkeypatch.setitem(medmnist.INFO[flag], "MD5", hashlib.md5(content).hexdigest())


@pytest.mark.slow
@pytest.mark.parametrize(("name", "lora"), [("pathmnist", "paper_v9"), ("breastmnist", "sd_r16_turnless")])
def test_committed_entries_run_every_stage(name, lora, server, sd15_base, tmp_path, monkeypatch):
    entry = COMMITTED["benchmarks"][name]
    server.add_repo(entry["base"]["pretrained_model_name_or_path"], sd15_base, entry["base"]["revision"])
    _serve(server, name, monkeypatch)
    run_graph(tmp_path, write_params(tmp_path / "params.yaml", _small(name, lora, tmp_path / "root")))
    scores = read_details(tmp_path / "metrics" / "evaluation.json")
    slugs = [labels.slug(label) for label in labels.of_set(name)]
    assert list(scores["per_tissue"]) == slugs and scores["n_images"] == 2 * len(slugs)
    with np.load(tmp_path / "data" / "generated" / "raw.npz") as raw:
        assert raw["train_images"].shape == (2 * len(slugs), 64, 64, *((3,) if name == "pathmnist" else ()))
    report = (tmp_path / "reports" / "report.html").read_text()
    assert ("0.6727" in report) == (name == "pathmnist"), "the paper's figure stands beside its own tissues alone"
    card = (tmp_path / "models" / "lora" / "README.md").read_text()
    assert f'from_pretrained("{entry["base"]["pretrained_model_name_or_path"]}", revision="{entry["base"]["revision"]}"' in card
    assert {path.stem for path in (tmp_path / "plots" / "evaluation" / "plates").glob("*.png")} == {*slugs, "overview", "pairs"}


@pytest.mark.parametrize("flag", SINGLE_LABEL)
def test_every_flat_set_with_one_label_is_one_entry(flag, server, tmp_path, monkeypatch):
    _serve(server, flag, monkeypatch)
    tree = _small("pathmnist", "paper_v9", tmp_path / "root")
    entry = tree["benchmarks"]["pathmnist"]
    info, slugs = medmnist.INFO[flag], [labels.slug(label) for label in labels.of_set(flag)]
    entry["dataset"] |= {"flag": flag, "labels": flag, "channels": info["n_channels"]}
    entry["prompts"] = {"plain": "a picture of {label}", "described": {slug: f"a picture of {slug}" for slug in slugs}}
    result = run_stage("prepare", "--params", write_params(tmp_path / "params.yaml", tree), "--out", tmp_path / "prepared")
    assert result.exit_code == 0, result.output
    card = json.loads((tmp_path / "prepared" / "card.json").read_text())
    assert card["slugs"] == slugs and card["channels"] == info["n_channels"]
    assert card["labels"] == [info["label"][str(number)] for number in range(len(slugs))]
    assert "root" not in card["source"] and str(tmp_path) not in json.dumps(card)


@pytest.mark.parametrize(("flag", "reason"), [("chestmnist", "a multi-label set: "), ("organmnist3d", "a set of volumes, ")])
@pytest.mark.parametrize("key", ["flag", "labels"])
def test_sets_that_cannot_be_prompted_are_refused_with_the_reason(key, flag, reason, tmp_path):
    tree = _small("pathmnist", "paper_v9", tmp_path)
    tree["benchmarks"]["pathmnist"]["dataset"][key] = flag
    result = run_stage("prepare", "--params", write_params(tmp_path / "params.yaml", tree), "--out", tmp_path / "prepared")
    assert result.exit_code == 1 and result.output.count("\n") == 1
    assert f"benchmarks.pathmnist.dataset.{key}: '{flag}': {reason}" in result.output


def test_labels_agree_with_medmnist_and_may_be_ones_own():
    assert tuple(medmnist.INFO["pathmnist"]["label"].values()) == labels.PATHMNIST
    assert labels.resolve(["no retinopathy", "mild"]) == ("no retinopathy", "mild")
    for named, problem in (
        ("moonmnist", "not a MedMNIST set; allowed: pathmnist, dermamnist"),
        (["a", "A"], "label 'a' has the slug 'a', which must be unique"),
        (["only"], "at least two labels"),
        (["a", 3], "all of them texts"),
        (7, "must be the name of a MedMNIST set or a list"),
    ):
        with pytest.raises(ValueError, match=problem):
            labels.resolve(named)


def test_the_paper_s_benchmark_is_the_paper_s():
    entry = COMMITTED["benchmarks"]["pathmnist"]
    gate, drawn = entry["classifiers"]["gate"], entry["generation"]
    assert entry["base"]["pretrained_model_name_or_path"] == "stable-diffusion-v1-5/stable-diffusion-v1-5"
    assert (entry["dataset"]["flag"], entry["dataset"]["archive_size"], entry["dataset"]["image_size"]) == (
        "pathmnist",
        224,
        224,
    )
    assert (gate["architecture"], gate["weights"], gate["input_size"], gate["epochs"]) == ("resnet18", "imagenet", 224, 15)
    assert (gate["learning_rate"], gate["weight_decay"], gate["batch_size"]) == (1e-4, 0.0, 32)
    assert (gate["lr_scheduler"], gate["checkpoint"]) == ("constant", "last")
    assert not any(gate["augmentation"].values())
    assert (drawn["scheduler"], drawn["num_inference_steps"], drawn["guidance_scale"]) == ("PNDMScheduler", 30, 7.5)
    assert (drawn["mixed_precision"], drawn["negative_prompt"]) == ("no", "")
    assert entry["prompts"]["plain"] == "a histopathological image of an area with {label}"


def test_remarks_on_earlier_versions_are_in_their_entries():
    v5, v6, v7 = (COMMITTED["loras"][f"paper_v{number}"] for number in (5, 6, 7))
    assert v5["schedule"]["lr_scheduler"] == "constant" and v5["training"]["max_train_steps"] == int(89_996 / 96 * 100)
    assert v6["schedule"]["lr_scheduler"] == "cosine" and v6["schedule"]["warmup_steps"] > 0
    assert v6["objective"]["rotation_degrees"] == 10.0
    assert v7["schedule"]["lr_scheduler"] == "cosine_warm_restarts" and v7["objective"]["noise_offset"] == 0.15


@pytest.mark.parametrize("name", [name for name in COMMITTED["loras"] if name.startswith(("paper_", "sd_"))])
def test_targets_exist_in_stable_diffusion_and_the_paper_s_count_comes_out(name):
    import diffusers
    import torch

    from benchmarks.random_base import SHAPES
    from pathsynth.diffusion.adapter import add_lora

    settings = LoraSettings.model_validate(COMMITTED["loras"][name])
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(**SHAPES["sd15"]["unet"])
        trainable = add_lora(unet, settings.adapter)
    if name.startswith("paper_"):
        assert sum(parameter.numel() for parameter in trainable) == 797_184


def test_prompts_have_a_length_at_which_clip_s_own_vocabulary_had_room_to_spare():
    """Words and commas; by CLIP's vocabulary, which is not here, the longest of them took 61 tokens of 77."""
    assert max(len(prompt.replace(",", " ,").split()) for prompt in prompts()) <= 50


def _trained(folder: Path, tiny_prepared, tmp_path, **training):
    from pathsynth.diffusion.base import load_base
    from pathsynth.finetuning.train import train_lora

    tree = tiny_lora()
    tree["training"] |= training
    pipeline = load_base(folder, "cpu")
    texts = [f"tissue {number}" for number in range(9)]
    settings = LoraSettings.model_validate(tree)
    result = train_lora(pipeline, tiny_prepared, texts, settings, 3, lambda *_: None, scratch=tmp_path)
    return pipeline, result


@pytest.fixture(scope="module")
def prepared64(tmp_path_factory):
    from pathsynth.data.prepared import open_prepared, write_prepared
    from pathsynth.sources import phantom

    splits = {split: phantom.draw_split(1, 7, 64, split) for split in ("train", "val", "test")}
    folder = tmp_path_factory.mktemp("prepared64")
    write_prepared(folder, "tiny", labels.PATHMNIST, splits, {"source": "phantom"}, 64)
    return open_prepared(folder)


@pytest.mark.parametrize("shape", ["sd15_small", "sd2_small"])
def test_epsilon_and_v_prediction_bases_train(shape, prepared64, tmp_path):
    random_base(tmp_path / "base", shape)
    _, result = _trained(tmp_path / "base", prepared64, tmp_path)
    assert 0.1 < result["loss"] < 10


def test_checkpointing_and_formats_of_frozen_weights(sd15_base, prepared64, tmp_path):
    import torch

    plain = _trained(sd15_base, prepared64, tmp_path)[1]["loss"]
    assert _trained(sd15_base, prepared64, tmp_path, gradient_checkpointing=True)[1]["loss"] == pytest.approx(plain, rel=1e-5)
    pipeline, result = _trained(sd15_base, prepared64, tmp_path, mixed_precision="bf16", weight_dtype="bf16")
    assert result["loss"] == pytest.approx(plain, rel=0.03)
    dtypes = {parameter.requires_grad: parameter.dtype for parameter in pipeline.unet.parameters()}
    assert dtypes == {True: torch.float32, False: torch.bfloat16}


def test_latents_of_224_pixels_are_28_wide(sd15_base):
    from pathsynth.diffusion.base import check_image_size, load_base
    from pathsynth.finetuning.latents import latent_shape

    pipeline = load_base(sd15_base, "cpu")
    check_image_size(pipeline, 224)
    assert (latent_shape(pipeline, 224), latent_shape(pipeline, 512)) == ((4, 28, 28), (4, 64, 64))
    for size in (220, 56):
        with pytest.raises(ModelError, match=f"{size} does not suit the base; allowed: multiples of 8 from 64"):
            check_image_size(pipeline, size)


def test_half_precision_weights_draw_nearly_the_same(sd15_base):
    from pathsynth.diffusion.base import load_base
    from pathsynth.generation.filtering import Attempt
    from pathsynth.generation.sampler import Sampler
    from pathsynth.generation.settings import GenerationSettings

    drawn = []
    for weight_dtype in ("fp32", "bf16"):
        settings = COMMITTED["benchmarks"]["pathmnist"]["generation"] | {"weight_dtype": weight_dtype, "num_inference_steps": 2}
        sampler = Sampler(load_base(sd15_base, "cpu"), ["tissue"], GenerationSettings.model_validate(settings), 1, 64)
        drawn.append(sampler([Attempt(0, 0, 0)]).astype(int))
    assert 0 < np.abs(drawn[0] - drawn[1]).mean() < 4


def test_an_adapter_of_another_base_is_refused(tiny_base, tiny_prepared, tmp_path):
    from pathsynth.diffusion.adapter import attach_lora, save_lora
    from pathsynth.diffusion.base import load_base, unet_sha256

    pipeline, _ = _trained(tiny_base, tiny_prepared, tmp_path / "scratch")
    save_lora(tmp_path / "lora", pipeline.unet, LoraSettings.model_validate(tiny_lora()), "card", "f" * 64)
    problem = (
        rf"lora: was trained on another base: on a UNet with SHA-256 f{{12}}, and this one has {unet_sha256(tiny_base)[:12]}"
    )
    with pytest.raises(ModelError, match=problem):
        attach_lora(load_base(tiny_base, "cpu"), tmp_path / "lora", unet_sha256(tiny_base))


def _out_of_memory(*_args, **_kwargs):
    import torch

    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def test_out_of_memory_in_training_says_what_to_lower(tiny_base, tiny_prepared, tmp_path, monkeypatch):
    from pathsynth.finetuning.objective import Objective

    monkeypatch.setattr(Objective, "loss", _out_of_memory)
    remedy = (
        r"out of memory: lower training.train_batch_size \(4\) and raise gradient_accumulation_steps \(1\) by the same factor"
    )
    with pytest.raises(OutOfMemory, match=remedy):
        _trained(tiny_base, tiny_prepared, tmp_path)
    assert not list(tmp_path.iterdir()), "the latents are gone"


def test_out_of_memory_in_generation_says_what_to_lower(tiny_base, monkeypatch):
    from diffusers import StableDiffusionPipeline

    from pathsynth.diffusion.base import load_base
    from pathsynth.generation.filtering import Attempt
    from pathsynth.generation.sampler import Sampler
    from pathsynth.generation.settings import GenerationSettings

    settings = GenerationSettings.model_validate(COMMITTED["benchmarks"]["phantom"]["generation"])
    sampler = Sampler(load_base(tiny_base, "cpu"), ["tissue"], settings, 1, 32)
    monkeypatch.setattr(StableDiffusionPipeline, "__call__", _out_of_memory)
    with pytest.raises(OutOfMemory, match=r"out of memory: lower generation.batch_size \(50\)"):
        sampler([Attempt(0, 0, 0)])


def test_out_of_memory_in_a_classifier_says_what_to_lower(tiny_prepared, tmp_path, monkeypatch):
    from conftest import tiny_tree

    from pathsynth.classifiers import training as classifier_training
    from pathsynth.classifiers.settings import ClassifierSettings

    settings = ClassifierSettings.model_validate(tiny_tree()["benchmarks"]["tiny"]["classifiers"]["gate"])
    monkeypatch.setattr(classifier_training, "augmented", _out_of_memory)
    with pytest.raises(OutOfMemory, match=r"out of memory: lower classifiers\.\*\.batch_size \(18\) or input_size \(32\)"):
        classifier_training.train_classifier(tiny_prepared, settings, 1, "cpu", lambda *_: None)


def test_a_full_memory_of_the_machine_is_told_too():
    from pathsynth.core.devices import catch_out_of_memory

    for error in (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")):
        with pytest.raises(OutOfMemory, match="out of memory: buy more"), catch_out_of_memory("buy more"):
            raise error
    with pytest.raises(RuntimeError, match="something else"), catch_out_of_memory("buy more"):
        raise RuntimeError("something else")
