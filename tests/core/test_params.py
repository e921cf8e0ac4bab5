"""params.yaml: the committed file is valid as a whole, and every kind of mistake is one line that names the place."""

from __future__ import annotations

import copy

import pytest
from conftest import ROOT, tiny_tree, write_params

from pathsynth.cli.check import Benchmark
from pathsynth.core.errors import ParamsError
from pathsynth.core.params import load_params, read_yaml, validate
from pathsynth.data import labels
from pathsynth.finetuning.settings import LoraSettings

COMMITTED = read_yaml(ROOT / "params.yaml")


@pytest.mark.parametrize("name", COMMITTED["benchmarks"])
def test_every_committed_benchmark_is_valid(name):
    assert validate("params.yaml", name, Benchmark, COMMITTED["benchmarks"][name]).classifiers.gate.architecture == "resnet18"


@pytest.mark.parametrize("name", COMMITTED["loras"])
def test_every_committed_lora_is_valid(name):
    assert validate("params.yaml", name, LoraSettings, COMMITTED["loras"][name]).adapter.rank > 0


def test_paper_v9_is_the_published_configuration():
    lora = validate("params.yaml", "paper_v9", LoraSettings, COMMITTED["loras"]["paper_v9"])
    assert (lora.adapter.rank, lora.adapter.lora_alpha, lora.adapter.init_lora_weights) == (4, 4.0, "gaussian")
    assert set(lora.adapter.target_modules) == {"to_k", "to_q", "to_v", "to_out.0"}
    training = lora.training
    assert (training.train_batch_size, training.gradient_accumulation_steps, training.max_train_steps) == (24, 4, 2000)
    assert (lora.optimizer.learning_rate, lora.optimizer.weight_decay, lora.optimizer.max_grad_norm) == (5e-5, 1e-4, 0.5)
    assert (lora.schedule.lr_scheduler, lora.schedule.restart_steps, lora.schedule.restart_mult) == (
        "cosine_warm_restarts",
        500,
        2,
    )
    assert (lora.objective.noise_offset, lora.objective.snr_gamma, lora.objective.ema_decay) == (0.15, None, None)
    assert (lora.objective.caption_dropout, lora.objective.flips, training.mixed_precision) == (0.0, False, "no")
    assert COMMITTED["seed"] == 1337


def test_selected_entries_are_loaded(tmp_path):
    params = load_params(write_params(tmp_path / "params.yaml", tiny_tree()))
    assert (params.seed, params.benchmark_name, params.lora_name, params.lora.adapter.rank) == (7, "tiny", "r2", 2)


def test_an_entry_that_is_not_selected_may_be_wrong(tmp_path):
    tree = tiny_tree()
    tree["loras"]["r3"] = {"rank": "many"}
    assert load_params(write_params(tmp_path / "params.yaml", tree)).lora_name == "r2"


def test_names_are_fit_for_files_and_tables(tmp_path):
    tree = tiny_tree()
    tree["lora"] = "=r2 | x"
    tree["loras"]["=r2 | x"] = tree["loras"]["r2"]
    with pytest.raises(ParamsError, match=r"lora: '=r2 \| x': names have letters, digits"):
        load_params(write_params(tmp_path / "params.yaml", tree))


def _set(*path_and_value):
    *path, value = path_and_value

    def change(tree):
        node = tree
        for part in path[:-1]:
            node = node[part]
        if value is KeyError:
            del node[path[-1]]
        else:
            node[path[-1]] = value

    return change


def _medmnist(**changes):
    common = {"source": "medmnist", "flag": "bloodmnist", "archive_size": 28, "root": "r", "labels": "bloodmnist"}
    return common | {"channels": 3, "image_size": 32} | changes


HALVES = {"weight_dtype": "fp16", "mixed_precision": "bf16"}
T, L = ("benchmarks", "tiny"), ("loras", "r2")
MISTAKES = {
    "unknown top key": (_set("sede", 1), "sede: unknown key; allowed: seed, deterministic, processes, benchmark"),
    "missing top key": (_set("seed", KeyError), "seed: missing"),
    "unknown lora": (_set("lora", "r9"), "lora: 'r9' is not an entry of loras; allowed: r2, r3"),
    "unknown benchmark": (_set("benchmark", "moon"), "benchmark: 'moon' is not an entry of benchmarks; allowed: tiny"),
    "seed is text": (_set("seed", "one"), "seed: 'one': must be a whole number"),
    "seed is true": (_set("seed", True), "seed: True: must be a whole number"),
    "negative seed": (_set("seed", -1), "seed: -1: must be"),
    "unknown key": (_set(*L, "adapter", "rnak", 4), "loras.r2.adapter.rnak: unknown key; allowed: rank, lora_alpha"),
    "unknown key in dataset": (
        _set(*T, "dataset", "size", 4),
        "benchmarks.tiny.dataset.size: unknown key; allowed: labels, channels, image_size, source, train_per",
    ),
    "unknown source": (_set(*T, "dataset", "source", "moon"), "benchmarks.tiny.dataset: "),
    "missing key": (_set(*L, "optimizer", "beta1", KeyError), "loras.r2.optimizer.beta1: missing"),
    "wrong type": (_set(*L, "adapter", "rank", "four"), "loras.r2.adapter.rank: 'four': "),
    "out of range": (_set(*L, "adapter", "rank", 0), "loras.r2.adapter.rank: 0: input should be greater than 0"),
    "nan": (_set(*L, "optimizer", "learning_rate", float("nan")), "loras.r2.optimizer.learning_rate: nan: "),
    "infinite": (_set(*T, "generation", "guidance_scale", float("inf")), "generation.guidance_scale: inf: "),
    "same seed for gate and judge": (
        _set(*T, "classifiers", "judge", "seed", 1),
        "benchmarks.tiny.classifiers: judge and gate both have seed 1",
    ),
    "zero images": (
        _set(*T, "generation", "images_per_tissue", 0),
        "generation.images_per_tissue: 0: input should be greater than 0",
    ),
    "not among": (
        _set(*L, "schedule", "lr_scheduler", "cosin"),
        "schedule.lr_scheduler: 'cosin': input should be 'constant', 'linear'",
    ),
    "restarts missing": (
        _set(*L, "schedule", "lr_scheduler", "cosine_warm_restarts"),
        "loras.r2.schedule: restart_steps and restart_mult are numbers",
    ),
    "warm-up too long": (
        _set(*L, "schedule", "warmup_steps", 2),
        "loras.r2: schedule.warmup_steps must be less than training.max_train_steps (2)",
    ),
    "no targets": (
        _set(*L, "adapter", "target_modules", []),
        "loras.r2.adapter.target_modules: []: list should have at least 1 item",
    ),
    "template without label": (
        _set(*T, "prompts", "plain", "tissue"),
        "benchmarks.tiny.prompts: plain: the template must contain {label}",
    ),
    "sentence missing": (
        _set(*T, "prompts", "described", "mucus", KeyError),
        "benchmarks.tiny: prompts.described: needs one sentence for each",
    ),
    "judge is the gate": (
        _set(*T, "classifiers", "judge", "architecture", "resnet18"),
        "the judge must be another architecture",
    ),
    "stem does not fit": (_set(*T, "classifiers", "judge", "stem", "small"), "stem: 'small' is for ResNets"),
    "path of two": (
        _set(*T, "base", "pretrained_model_name_or_path", ["a", "b"]),
        "benchmarks.tiny.base.pretrained_model_name_or_path: ['a', 'b']: input should be a valid string",
    ),
    "labels of another set": (
        _set(*T, "dataset", _medmnist(labels="tissuemnist")),
        "benchmarks.tiny.dataset: labels: 'tissuemnist' are of another set; allowed: bloodmnist, or a list of 8 labels",
    ),
    "too few labels": (_set(*T, "dataset", _medmnist(labels=["a", "b"])), "labels: 2 for the 8 classes of bloodmnist"),
    "grey where colour is": (_set(*T, "dataset", _medmnist(channels=1)), "channels: bloodmnist has 3, not 1"),
    "unknown set": (
        _set(*T, "dataset", _medmnist(flag="moonmnist")),
        "dataset.flag: 'moonmnist': not a MedMNIST set; allowed: pathmnist",
    ),
    "base without owner": (
        _set(*T, "base", {"pretrained_model_name_or_path": "sd", "revision": "0" * 40, "variant": None}),
        "benchmarks.tiny.base: 'sd' is no repository of the hub, OWNER/NAME; for a local folder use revision: null",
    ),
    "a branch": (_set(*T, "base", "revision", "main"), "benchmarks.tiny.base.revision: 'main': string should match"),
    "checksum without file": (
        _set(*T, "classifiers", "gate", "weights_sha256", "0" * 64),
        "classifiers.gate: weights_sha256: is for a file, and weights is 'none'",
    ),
    "formats of training": (
        _set(*L, "training", "weight_dtype", "bf16"),
        "loras.r2.training: weight_dtype: 'bf16' needs mixed_precision: bf16",
    ),
    "formats of generation": (
        _set(*T, "generation", tiny_tree()["benchmarks"]["tiny"]["generation"] | HALVES),
        "benchmarks.tiny.generation: weight_dtype: 'fp16' needs mixed_precision: no or fp16",
    ),
    "deterministic is a word": (_set("deterministic", "maybe"), "deterministic: 'maybe': must be true or false"),
    "no process": (_set("processes", 0), "processes: 0: must be a whole number from 1 to 1024"),
    "entry is no mapping": (_set("loras", "r2", 4), "loras.r2: 4: input should be"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_is_one_line_with_file_key_value_and_remedy(mistake, tmp_path):
    change, expected = MISTAKES[mistake]
    tree = copy.deepcopy(tiny_tree())
    change(tree)
    path = write_params(tmp_path / "params.yaml", tree)
    with pytest.raises(ParamsError) as caught:
        load_params(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    assert expected in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seed: [1", "is not YAML"),
        ("seed: 1\nseed: 2\n", "is not YAML"),
        ("- 1\n", "must hold a mapping"),
        ("a: !!python/object/apply:os.system ['true']\n", "is not YAML"),
    ],
)
def test_broken_file_is_one_line(text, expected, tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(ParamsError, match=expected) as caught:
        load_params(path)
    assert "\n" not in str(caught.value)


def test_missing_file_is_one_line(tmp_path):
    with pytest.raises(ParamsError, match="cannot be read: No such file"):
        load_params(tmp_path / "params.yaml")


def test_unknown_key_in_a_list_is_named():
    from conftest import tiny_base_settings

    from pathsynth.bundled_base.settings import BaseSettings

    tree = tiny_base_settings().model_dump()
    tree["unet"]["phases"][1]["step"] = 3
    with pytest.raises(ParamsError, match=r"unet\.phases\.1\.step: unknown key; allowed: steps, learning_rate"):
        validate("base/params.yaml", "base", BaseSettings, tree)


def test_exponents_without_a_dot_are_numbers_as_in_dvc(tmp_path):
    path = tmp_path / "some.yaml"
    path.write_text("a: 1e-4\n")
    assert read_yaml(path) == {"a": 1e-4}


def test_prompt_sets():
    benchmark = tiny_tree()["benchmarks"]["tiny"]
    benchmark["prompts"] = {
        "plain": "an area with {label}",
        "described": {slug: f"sentence on {slug}" for slug in labels.SLUGS},
    }
    benchmark = validate("params.yaml", "tiny", Benchmark, benchmark)
    assert benchmark.texts("plain")[5] == "an area with smooth muscle"
    assert benchmark.texts("described")[5] == "sentence on smooth_muscle"
