"""The contract of dvc.yaml: deps are complete and no wider than needed, params exist, the lock is up to date."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from conftest import ROOT, write_yaml
from dvc.dependency.param import ParamsDependency
from dvc.repo import Repo
from dvc.repo.experiments.show import tabulate

from pathsynth.core.params import read_yaml

REPO = Repo(str(ROOT))
STAGES = {stage.addressing: stage for stage in REPO.index.stages}
# Sub-packages in the order of imports: each imports only from those before it.
ORDER = (
    "core", "data", "sources", "classifiers", "diffusion", "finetuning", "generation", "features", "evaluation", "report",
    "compare", "atlas", "leaderboard", "synthesis", "app", "readers", "cli", "bundled_base",
)  # fmt: skip
# What differs between runs: measured times, and the page that shows them.
UNHASHED = {"logs", "scratch", "reports/report.html"}
TRAINING_AND_GENERATING = [name for name in STAGES if name.startswith(("prepare", "train_", "generate_"))]
NOT_BELOW_TRAINING = {
    f"pathsynth/{name}" for name in ("features", "evaluation", "report", "compare", "synthesis", "app", "cli")
}


def paths(entries) -> set[str]:
    """Paths of deps or outs relative to the repository."""
    return {Path(entry.fs_path).relative_to(ROOT).as_posix() for entry in entries}


def dep_paths(name: str) -> set[str]:
    return paths(dep for dep in STAGES[name].deps if not isinstance(dep, ParamsDependency))


def covers(path: str, file: str) -> bool:
    """Whether a path is a file or one of the folders above it."""
    return file == path or file.startswith(f"{path}/")


@cache
def imports_of(path: Path) -> frozenset[Path]:
    """Files of the package that a file imports itself, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    parts = [name.split(".") for name in names if name.startswith("pathsynth.")]  # an alias may be a module or not
    files = {ROOT.joinpath(*part).with_suffix(".py") for part in parts} | {
        ROOT.joinpath(*part, "__init__.py") for part in parts
    }
    return frozenset(file for file in files if file.is_file())


def imported_by(path: Path) -> set[str]:
    """Files of the package that a file imports, directly or through another."""
    seen: set[Path] = set()
    waiting = [path]
    while waiting:
        new = imports_of(waiting.pop()) - seen
        seen |= new
        waiting += new
    return {file.relative_to(ROOT).as_posix() for file in seen}


def script_of(name: str) -> str:
    return re.search(r"-m (stages\.\w+)", STAGES[name].cmd).group(1).replace(".", "/") + ".py"


def arrows() -> Iterator[tuple[str, str]]:
    """Imports of the package as pairs of files."""
    for file in sorted((ROOT / "pathsynth").glob("*/*.py")):
        for other in imports_of(file):
            yield file.relative_to(ROOT).as_posix(), other.relative_to(ROOT).as_posix()


class TestCode:
    def test_imports_between_sub_packages_go_one_way(self):
        upward = [
            (file, other) for file, other in arrows() if ORDER.index(file.split("/")[1]) < ORDER.index(other.split("/")[1])
        ]
        assert upward == []

    @pytest.mark.parametrize("name", STAGES)
    def test_every_import_is_a_dep_and_every_code_dep_is_imported(self, name):
        # neither the options and logs of commands nor the version can change an out
        code = {file for file in imported_by(ROOT / script_of(name)) if not covers("pathsynth/cli", file)}
        code = {script_of(name), *code} - {"pathsynth/__init__.py"}
        deps = {dep for dep in dep_paths(name) if dep.startswith(("pathsynth/", "stages/"))}
        assert {file for file in code if not any(covers(dep, file) for dep in deps)} == set()
        assert {dep for dep in deps if not any(covers(dep, file) for file in code)} == set()

    @pytest.mark.parametrize("name", TRAINING_AND_GENERATING)
    def test_training_and_generation_depend_on_no_evaluation(self, name):
        assert not {dep for dep in dep_paths(name) for room in NOT_BELOW_TRAINING if covers(room, dep) or covers(dep, room)}


class TestPaths:
    def test_graph_has_no_cycle_and_no_path_is_an_out_twice(self):
        REPO.index.check_graph()

    @pytest.mark.parametrize("name", STAGES)
    def test_every_path_in_the_command_is_declared(self, name):
        stage = STAGES[name]
        known = UNHASHED | paths([*stage.deps, *stage.outs])
        words = [word for word in stage.cmd.split()[3:] if not word.startswith("--")]
        places = [word for word in words if "/" in word or word in ("metrics", "plots", "logs", "scratch", "params.yaml")]
        assert not [word for word in places if not any(covers(word, path) or covers(path, word) for path in known)]

    @pytest.mark.parametrize("name", STAGES)
    def test_every_dep_is_an_out_or_in_the_repository(self, name):
        outs = {path for stage in STAGES.values() for path in paths(stage.outs)}
        assert not [dep for dep in dep_paths(name) if dep not in outs and not (ROOT / dep).exists()]

    @pytest.mark.parametrize("name", [name for name in STAGES if name != "report"])
    def test_run_cache_can_restore_every_stage(self, name):
        """DVC saves no run of a stage without outs, or with an uncached out that is neither a metric nor a plot."""
        outs = STAGES[name].outs
        assert outs and all(out.use_cache or out.metric or out.plot for out in outs)

    def test_report_depends_on_all_that_it_shows_and_has_no_out(self):
        assert not STAGES["report"].outs and {"metrics", "plots"} <= dep_paths("report")

    def test_artifacts_are_outs(self):
        outs = {path for stage in STAGES.values() for path in paths(stage.outs)}
        artifacts = read_yaml(ROOT / "dvc.yaml")["artifacts"].values()
        assert {artifact["path"] for artifact in artifacts} <= outs
        assert all(
            artifact["type"] in ("model", "dataset") and artifact["desc"] and artifact["labels"] for artifact in artifacts
        )


class TestParams:
    @pytest.mark.parametrize("name", STAGES)
    def test_every_param_exists(self, name):
        for dep in STAGES[name].params:
            assert set(dep.params) <= set(dep.read_params()), dep.def_path

    def test_lora_change_reaches_only_what_depends_on_it(self):
        touched = {name for name in STAGES for dep in STAGES[name].params if any("loras." in param for param in dep.params)}
        generating = {"generate_filtered", "generate_controls"}
        assert touched == {"train_lora", *generating, "measure_memorisation", "evaluate", "report"}

    def test_table_of_experiments_is_short_and_begins_with_the_headline(self):
        columns = tabulate(REPO.experiments.show()[:1], fill_value=None)[0].keys()
        columns = [name for name in columns if name not in ("State", "Executor")]  # empty without a queue, so left out
        assert columns[:6] == ["Experiment", "rev", "typ", "Created", "parent", "macro_f1"]
        assert len(columns) <= 100
        # of a param and a dep of one name DVC shows one, and shifts the columns after it
        assert len(set(columns)) == len(columns)


@pytest.mark.parametrize("name", STAGES)
def test_lock_is_up_to_date(name):
    """The part of `dvc status` that needs no data: code, params and outs in git."""
    stage = STAGES[name]
    cached = {path for other in STAGES.values() for path in paths(out for out in other.outs if out.use_cache)}
    in_git = [entry for entry in (*stage.deps, *stage.outs) if not paths([entry]) & cached]
    changed = [entry.def_path for entry in in_git if entry.status()]
    assert changed == [], f"run `dvc repro {name}`, or `dvc commit {name}` if its outs cannot have changed"
    assert not stage.changed_stage(), f"the command or the deps of {name} are not those in dvc.lock; run `dvc repro {name}`"


def test_lock_has_no_other_stages():
    assert set(read_yaml(ROOT / "dvc.lock")["stages"]) == set(STAGES)


ALL_STAGES = set(STAGES)
GENERATE = {"generate_filtered", "generate_controls"}
CLASSIFY = {"train_classifier@gate", "train_classifier@judge", "observe_real", "measure_usefulness", "evaluate", "report"}
SAMPLE_LORA = GENERATE | {"measure_memorisation"}
LORA = {"train_lora", "evaluate", "report"} | SAMPLE_LORA
DRAW = {"observe_real", "measure_memorisation"}
EVALUATE = {"measure_memorisation", "measure_usefulness", "evaluate", "headline", "report"}
# A changed file, and the stages that it makes stale.
STALE_AFTER = {
    "pathsynth/core/io.py": ALL_STAGES,
    "pathsynth/data/labels.py": ALL_STAGES - {"headline"},
    "pathsynth/sources/phantom.py": {"prepare"},
    "pathsynth/classifiers/training.py": CLASSIFY | {"generate_filtered", "measure_memorisation"},
    "pathsynth/diffusion/adapter.py": GENERATE | DRAW | {"train_lora"},
    "pathsynth/finetuning/objective.py": {"train_lora"},
    "pathsynth/generation/sampler.py": GENERATE,
    "pathsynth/features/extractors.py": {"observe_real", "measure_usefulness", "evaluate"},
    "pathsynth/evaluation/fidelity.py": EVALUATE,
    "pathsynth/report/charts.py": {"report"},
    "pathsynth/compare/page.py": set(),
    "pathsynth/synthesis/records.py": set(),
    "pathsynth/cli/options.py": set(),
    "pathsynth/bundled_base/training.py": set(),
    "pathsynth/__init__.py": set(),
    "stages/headline.py": {"headline"},
}
# A changed value: the file, the key, and the stages that it makes stale.
STALE_AFTER_VALUE = [
    ("configs/benchmarks/tiny.yaml", "dataset.train_per_tissue", {"prepare", "measure_memorisation", "report"} | GENERATE),
    ("configs/benchmarks/tiny.yaml", "classifiers.gate.epochs", {"train_classifier@gate", "report"}),
    ("configs/benchmarks/tiny.yaml", "generation.sampler.guidance_scale", GENERATE | {"report"}),
    ("configs/benchmarks/tiny.yaml", "generation.filter.quota", {"generate_filtered", "evaluate", "report"}),
    ("configs/benchmarks/tiny.yaml", "generation.snapshot", SAMPLE_LORA | {"report"}),
    ("configs/benchmarks/tiny.yaml", "evaluation.usefulness.repeats", {"measure_usefulness", "report"}),
    ("configs/prompts/tiny.yaml", "plain", LORA - {"evaluate"}),
    ("params.yaml", "loras.r2.0.adapter.rank", LORA),
    ("params.yaml", "loras.r3.0.adapter.rank", set()),
    ("params.yaml", "lora_families.unused", LORA),
    ("params.yaml", "seeds.data", {"prepare", "report"}),
    ("params.yaml", "seeds.observers", CLASSIFY | {"measure_memorisation"}),
    ("params.yaml", "seeds.training", {"train_lora", "report"}),
    ("params.yaml", "seeds.drawing", GENERATE | {"report"}),
    ("params.yaml", "processes", set()),
    ("params.yaml", "device", set()),
]


def stale_stages(folder: Path) -> set[str]:
    """What `dvc status` lists, downstream stages left out."""
    with Repo(str(folder)) as repo:
        return {name.rpartition(":")[2] for name in repo.status()}


@pytest.mark.slow
class TestStaleStages:
    @pytest.mark.parametrize("path", STALE_AFTER)
    def test_changed_code_makes_only_its_stages_stale(self, path, own_workspace):
        file = own_workspace / path
        text = file.read_text()
        file.write_text(text + "# changed\n")
        try:
            assert stale_stages(own_workspace) == STALE_AFTER[path]
        finally:
            file.write_text(text)

    @pytest.mark.parametrize(("path", "key", "stale"), STALE_AFTER_VALUE)
    def test_changed_value_makes_only_its_stages_stale(self, path, key, stale, own_workspace):
        file = own_workspace / path
        text, tree = file.read_text(), read_yaml(file)
        *parents, last = key.split(".")
        node = tree
        for parent in parents:
            node = node[int(parent) if parent.isdigit() else parent]
        value = node.get(last, 0)
        node[last] = f"{value} changed" if isinstance(value, str) else (value or 0) + 1
        write_yaml(file, tree)
        try:
            assert stale_stages(own_workspace) == stale
        finally:
            file.write_text(text)
