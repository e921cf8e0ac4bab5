"""params.yaml and configs/: committed files are valid, and every mistake is one line with file, key, value and fix."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import ClassVar

import pytest
from click.testing import CliRunner
from conftest import ROOT, tiny_base_settings, tiny_tree, write_params

from pathsynth.__main__ import main
from pathsynth.bundled_base.settings import BaseSettings
from pathsynth.classifiers.settings import Classifiers
from pathsynth.cli.check import check_benchmark, check_lora, find_mistakes
from pathsynth.core.errors import ParamsError
from pathsynth.core.params import BENCHMARKS, config_names, load_params, lora_names, read_yaml, resolve_lora, validate
from pathsynth.data.settings import AnyDataset
from pathsynth.diffusion.settings import Prompts
from pathsynth.finetuning.settings import LoraSettings

PARAMS = ROOT / "params.yaml"
COMMITTED = read_yaml(PARAMS)


@pytest.mark.parametrize("name", config_names(ROOT / BENCHMARKS))
def test_committed_benchmark_is_valid(name):
    # the paper's network, but where a few hundred images allow a better one
    expected = "densenet37" if name == "pathmnist_small" else "resnet18"
    assert check_benchmark(ROOT, name).classifiers.gate.architecture == expected


@pytest.mark.parametrize("name", lora_names(PARAMS, COMMITTED))
def test_committed_lora_is_valid(name):
    assert check_lora(PARAMS, COMMITTED, name).adapter.rank > 0


def test_parameter_file_fits_two_screens():
    assert PARAMS.stat().st_size < 6000


def test_paper_v9_is_the_published_configuration():
    lora = check_lora(PARAMS, COMMITTED, "paper_v9")
    assert (lora.adapter.rank, lora.adapter.lora_alpha) == (4, 4.0)
    assert set(lora.adapter.target_modules) == {"to_k", "to_q", "to_v", "to_out.0"}
    training, schedule = lora.training, lora.schedule
    assert (training.train_batch_size, training.gradient_accumulation_steps, training.max_train_steps) == (24, 4, 2000)
    assert (lora.optimizer.learning_rate, lora.optimizer.weight_decay, lora.optimizer.max_grad_norm) == (5e-5, 1e-4, 0.5)
    assert (schedule.lr_scheduler, schedule.restart_steps, schedule.restart_mult) == ("cosine_warm_restarts", 500, 2)
    assert (lora.objective.noise_offset, lora.objective.snr_gamma) == (0.15, None)
    assert (lora.objective.caption_dropout, lora.objective.flips, training.mixed_precision) == (0.0, False, "no")
    assert COMMITTED["seeds"] == {"data": 1337, "observers": 1337, "training": 1, "drawing": 1337}


def test_selected_entries_are_loaded(tmp_path):
    params = load_params(write_params(tmp_path / "params.yaml", tiny_tree()))
    assert (params.seeds.training, params.benchmark_name, params.lora_name) == (7, "tiny", "r2")
    assert params.section("lora", LoraSettings).adapter.rank == 2
    assert params.section("dataset", AnyDataset).image_size == 32


def test_sections_that_are_not_read_may_be_wrong(tmp_path):
    tree = tiny_tree()
    tree["loras"]["r3"] = {"rank": "many"}
    tree["benchmarks"]["tiny"]["evaluation"] = None
    assert load_params(write_params(tmp_path / "params.yaml", tree)).section("dataset", AnyDataset).source == "phantom"


class TestLayers:
    """A LoRA configuration is a list of families and differences."""

    TREE: ClassVar[dict] = {
        "lora_families": {"a": [{"x": 1, "n": {"p": 1, "q": [1, 2]}}], "b": ["a", {"n": {"p": 2}}]},
        "loras": {"one": ["a"], "two": ["b", {"n": {"q": [3]}}, {"x": None}], "loop": ["missing"], "plain": 1},
    }

    def test_later_layers_win_and_nested_mappings_are_merged(self):
        assert resolve_lora("f", self.TREE, "one") == {"x": 1, "n": {"p": 1, "q": [1, 2]}}
        assert resolve_lora("f", self.TREE, "two") == {"x": None, "n": {"p": 2, "q": [3]}}

    def test_resolving_changes_no_family(self):
        before = copy.deepcopy(self.TREE)
        resolve_lora("f", self.TREE, "two")
        assert before == self.TREE

    def test_unknown_family_is_named(self):
        with pytest.raises(ParamsError, match=r"f: loras.loop: 'missing' is not an entry of lora_families; allowed: a, b$"):
            resolve_lora("f", self.TREE, "loop")

    def test_entry_that_is_not_a_list_is_named(self):
        with pytest.raises(ParamsError, match=r"f: loras.plain: 1: must be a list of family names and mappings"):
            resolve_lora("f", self.TREE, "plain")

    def test_family_of_itself_is_an_error(self):
        tree = {"lora_families": {"a": ["b"], "b": ["a"]}, "loras": {"one": ["a"]}}
        with pytest.raises(ParamsError, match=r"'a' is not an entry of lora_families"):
            resolve_lora("f", tree, "one")


def test_section_may_be_a_list_of_mappings(tmp_path):
    tree = tiny_tree()
    gate = tree["benchmarks"]["tiny"]["classifiers"]["gate"]
    parts = [dict(list(gate.items())[:5]), dict(list(gate.items())[5:]), {"augmentation": {"flips": False}}]
    tree["benchmarks"]["tiny"]["classifiers"]["gate"] = parts
    tree["benchmarks"]["tiny"]["dataset"] = [tree["benchmarks"]["tiny"]["dataset"]]
    params = load_params(write_params(tmp_path / "params.yaml", tree))
    gate = params.section("classifiers", Classifiers).gate
    assert not gate.augmentation.flips and gate.augmentation.rotate90
    assert params.section("dataset", AnyDataset).image_size == 32


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


T, L = ("benchmarks", "tiny"), ("loras", "r2")
SAMPLER = (*T, "generation", "sampler")
P, B, W = "params.yaml", "configs/benchmarks/tiny.yaml", "configs/prompts/tiny.yaml"
# What is changed, the file that the message names, and how it goes on.
MISTAKES = {
    "misspelt key": (
        lambda tree: tree["loras"]["r2"]["adapter"].update(rnk=tree["loras"]["r2"]["adapter"].pop("rank")), P,
        "loras.r2.adapter.rnk: unknown key; allowed: rank, lora_alpha",
    ),
    "unknown top key": (_set("sede", 1), P, "sede: unknown key; allowed: seeds, deterministic, processes, device, benchmark"),
    "missing top key": (_set("seeds", KeyError), P, "seeds: missing"),
    "one seed for all": (_set("seeds", 7), P, "seeds: 7: input should be a valid dictionary"),
    "missing seed": (_set("seeds", "training", KeyError), P, "seeds.training: missing"),
    "unknown seed": (_set("seeds", "noise", 1), P, "seeds.noise: unknown key; allowed: data, observers, training, drawing"),
    "unknown lora": (_set("lora", "r9"), P, "lora: 'r9' is not an entry of loras; allowed: r2, r3"),
    "unknown benchmark": (_set("benchmark", "moon"), P, "benchmark: 'moon' is not a file in configs/benchmarks; allowed: tiny"),
    "seed is text": (_set("seeds", "data", "one"), P, "seeds.data: 'one': input should be a valid integer"),
    "seed is true": (_set("seeds", "data", True), P, "seeds.data: True: input should be a valid integer"),
    "negative seed": (_set("seeds", "training", -1), P, "seeds.training: -1: input should be greater than or equal to 0"),
    "deterministic is a word": (_set("deterministic", "maybe"), P, "deterministic: 'maybe': input should be a valid boolean"),
    "no process": (_set("processes", 0), P, "processes: 0: input should be greater than or equal to 1"),
    "unknown device": (_set("device", "gpu"), P, "device: 'gpu': input should be 'auto', 'cuda' or 'cpu'"),
    "name with a dot": (_set("loras", "r1.5", {}), P, "loras: 'r1.5': DVC splits names at dots"),
    "name with a pipe": (_set("loras", "a|b", {}), P, "loras: 'a|b': allowed in names: letters, digits, '_' and '-'"),
    "table of the wrong kind": (_set("lora_families", 1), P, "lora_families: must map names to entries"),
    "unknown key": (_set(*L, "adapter", "rnak", 4), P, "loras.r2.adapter.rnak: unknown key; allowed: rank, lora_alpha"),
    "missing key": (_set(*L, "adapter", "rank", KeyError), P, "loras.r2.adapter.rank: missing"),
    "wrong type": (_set(*L, "adapter", "rank", "four"), P, "loras.r2.adapter.rank: 'four': input should be a valid integer"),
    "out of range": (_set(*L, "adapter", "rank", 0), P, "loras.r2.adapter.rank: 0: input should be greater than 0"),
    "nan": (_set(*L, "optimizer", "learning_rate", float("nan")), P, "loras.r2.optimizer.learning_rate: nan: "),
    "not among": (
        _set(*L, "schedule", "lr_scheduler", "cosin"), P,
        "loras.r2.schedule.lr_scheduler: 'cosin': input should be 'constant', 'linear'",
    ),
    "restarts missing": (
        _set(*L, "schedule", "lr_scheduler", "cosine_warm_restarts"), P,
        "loras.r2.schedule: restart_steps and restart_mult must be numbers",
    ),
    "warm-up too long": (
        _set(*L, "schedule", "warmup_steps", 2), P,
        "loras.r2: schedule.warmup_steps must be less than training.max_train_steps (2)",
    ),
    "no targets": (_set(*L, "adapter", "target_modules", []), P, "loras.r2.adapter.target_modules: []: list should have"),
    "formats of training": (
        _set(*L, "training", "weight_dtype", "bf16"), P,
        "loras.r2.training: weight_dtype: 'bf16' needs mixed_precision: bf16",
    ),
    "unknown section": (_set(*T, "datasets", {}), B, "datasets: unknown key; allowed: dataset, base, classifiers"),
    "missing section": (_set(*T, "generation", KeyError), B, "generation: missing"),
    "unknown key in dataset": (
        _set(*T, "dataset", "size", 4), B, "dataset.size: unknown key; allowed: labels, channels, image_size, source, train_per"
    ),
    "unknown source": (_set(*T, "dataset", "source", "moon"), B, "dataset: "),
    "infinite": (_set(*SAMPLER, "guidance_scale", float("inf")), B, "generation.sampler.guidance_scale: inf: "),
    "zero images": (_set(*T, "generation", "images_per_tissue", 0), B, "generation.images_per_tissue: 0: input should be"),
    "same seed for gate and judge": (
        _set(*T, "classifiers", "judge", "seed", 1), B, "classifiers: gate and judge both have seed 1"
    ),
    "judge is the gate": (
        _set(*T, "classifiers", "judge", "architecture", "resnet18"), B, "classifiers: gate and judge are both 'resnet18'"
    ),
    "stem does not fit": (
        _set(*T, "classifiers", "judge", "stem", "small"), B, "classifiers.judge: stem: 'small' needs a ResNet"
    ),
    "path of two": (
        _set(*T, "base", "pretrained_model_name_or_path", ["a", "b"]), B,
        "base.pretrained_model_name_or_path: ['a', 'b']: input should be a valid string",
    ),
    "labels of another set": (
        _set(*T, "dataset", _medmnist(labels="tissuemnist")), B,
        "dataset: labels: 'tissuemnist' is a different set; allowed: bloodmnist, or a list of 8 labels",
    ),
    "too few labels": (_set(*T, "dataset", _medmnist(labels=["a", "b"])), B, "labels: 2 for the 8 classes of bloodmnist"),
    "grey where colour is": (_set(*T, "dataset", _medmnist(channels=1)), B, "channels: bloodmnist has 3, not 1"),
    "unknown set": (
        _set(*T, "dataset", _medmnist(flag="moonmnist")), B,
        "dataset.flag: 'moonmnist': not a MedMNIST set; allowed: pathmnist",
    ),
    "base without owner": (
        _set(*T, "base", {"pretrained_model_name_or_path": "sd", "revision": "0" * 40, "variant": None}), B,
        "base: 'sd' is not a hub repository (OWNER/NAME); for a local folder use revision: null",
    ),
    "a branch": (_set(*T, "base", "revision", "main"), B, "base.revision: 'main': string should match"),
    "checksum without file": (
        _set(*T, "classifiers", "gate", "weights_sha256", "0" * 64), B,
        "classifiers.gate: weights_sha256: only applies to a file, and weights is 'none'",
    ),
    "formats of generation": (
        lambda tree: tree["benchmarks"]["tiny"]["generation"]["sampler"].update(weight_dtype="fp16", mixed_precision="bf16"), B,
        "generation.sampler: weight_dtype: 'fp16' needs mixed_precision: no or fp16",
    ),
    "usefulness by the best epoch": (
        _set(*T, "evaluation", "usefulness", "classifier", "checkpoint", "best"), B,
        "evaluation.usefulness: classifier.checkpoint: 'best' would select by real images; allowed: 'last'",
    ),
    "template without label": (_set(*T, "prompts", "plain", "tissue"), W, "plain: the template must contain {label}"),
    "sentence missing": (
        _set(*T, "prompts", "described", "mucus", KeyError), W, "described: needs one sentence for each of adipose"
    ),
    "prompts missing": (_set(*T, "prompts", KeyError), W, "cannot be read: No such file"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_is_one_line_with_file_key_value_and_fix(mistake, tmp_path):
    change, file, expected = MISTAKES[mistake]
    tree = tiny_tree()
    change(tree)
    path = write_params(tmp_path / "params.yaml", tree)
    messages = [str(error) for error in find_mistakes(path)]
    assert messages and not any("\n" in message for message in messages)
    assert any(message.startswith(f"{tmp_path / file}: ") and expected in message for message in messages), messages


def test_check_finds_processes_that_cannot_share_a_step(tmp_path):
    path = write_params(tmp_path / "params.yaml", tiny_tree() | {"processes": 3})
    result = CliRunner().invoke(main, ["check", "--params", str(path)])
    assert result.exit_code == 1
    assert result.stderr == "error: processes: 3 cannot share a step of 4 images equally; allowed: divisors of 4\n"


def test_check_finds_mistakes_in_entries_that_are_not_selected(tmp_path):
    tree = tiny_tree()
    tree["benchmarks"]["other"] = copy.deepcopy(tree["benchmarks"]["tiny"]) | {"base": {}}
    tree["loras"]["r3"]["adapter"]["rank"] = -1
    path = write_params(tmp_path / "params.yaml", tree)
    (tmp_path / "configs/prompts/unused.yaml").write_text("plain: x {label}\n")
    load_params(path)
    assert [str(error).removeprefix(f"{tmp_path}/").split(":")[0] for error in find_mistakes(path)] == [
        "configs/benchmarks/other.yaml",
        "configs/prompts/unused.yaml",
        "params.yaml",
    ]


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
    tree = tiny_base_settings().model_dump()
    tree["unet"]["phases"][1]["step"] = 3
    with pytest.raises(ParamsError, match=r"unet\.phases\.1\.step: unknown key; allowed: steps, learning_rate"):
        validate("base/params.yaml", "base", BaseSettings, tree)


def test_exponents_without_a_dot_are_numbers_as_in_dvc(tmp_path):
    path = tmp_path / "some.yaml"
    path.write_text("a: 1e-4\n")
    assert read_yaml(path) == {"a": 1e-4}


def test_prompt_sets(tmp_path):
    params = load_params(write_params(tmp_path / "params.yaml", tiny_tree()))
    prompts, dataset = params.section("prompts", Prompts), params.section("dataset", AnyDataset)
    assert prompts.texts("plain", dataset)[5] == "an area with smooth muscle"
    assert prompts.texts("described", dataset)[5] == "many pink smooth_muscle dots"


def test_fingerprint_follows_every_value_but_processes_and_device(tmp_path):
    def fingerprint(name: str, change=lambda tree: None) -> str:
        tree = tiny_tree()
        change(tree)
        Path(tmp_path / name).mkdir()
        return load_params(write_params(tmp_path / name / "params.yaml", tree)).fingerprint()

    same = fingerprint("a")
    assert fingerprint("b", _set("processes", 2)) == fingerprint("d", _set("device", "cpu")) == same
    changes = (_set("seeds", "drawing", 8), _set(*L, "adapter", "rank", 3), _set(*SAMPLER, "batch_size", 7), _set("lora", "r3"))
    assert same not in {fingerprint(f"c{number}", change) for number, change in enumerate(changes)}
