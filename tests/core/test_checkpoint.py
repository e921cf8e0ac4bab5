"""Work that was interrupted goes on to the very same end, and nothing stale is gone on with."""

from __future__ import annotations

import os
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny_lora, tiny_tree, write_params

from pathsynth.classifiers.settings import ClassifierSettings
from pathsynth.core import checkpoint as resume
from pathsynth.core.checkpoint import NOTHING, Saved, resumable
from pathsynth.core.distributed import Processes
from pathsynth.core.errors import DataError, ProcessError
from pathsynth.core.params import load_params
from pathsynth.evaluation.settings import UsefulnessSettings
from pathsynth.finetuning.settings import LoraSettings

PROMPTS = [f"tissue number {i}" for i in range(9)]


class Killed(BaseException):
    """Ends a run as a signal would."""


@pytest.fixture
def always(monkeypatch) -> None:
    """Saves at every occasion."""
    monkeypatch.setenv(resume.SECONDS_VARIABLE, "0")


@pytest.fixture
def tree(tmp_path, tiny_base) -> dict:
    return tiny_tree(tiny_base)


def _params(folder: Path, tree: dict):
    return load_params(write_params(folder / "params.yaml", tree))


def test_what_is_saved_is_read_back_and_what_is_cut_short_is_not(tmp_path, capsys):
    import torch

    saved = Saved(tmp_path)
    state = {"weights": torch.arange(5.0), "losses": [0.1, 1e-9], "none": None, "points": [(1, {"a": 2.0})]}
    saved.put("training", state)
    found = Saved(tmp_path).get("training")
    assert found is not None and torch.equal(found.pop("weights"), state.pop("weights")) and found == state
    whole = (tmp_path / "training").read_bytes()
    for damaged in (whole[:-1], whole[:20], b"", whole[:40] + b"x" + whole[41:]):
        (tmp_path / "training").write_bytes(damaged)
        assert saved.get("training") is None
        assert "what was saved as training is damaged; that part begins anew" in capsys.readouterr().err
    assert saved.get("other") is None


def test_a_state_that_holds_code_is_not_run(tmp_path):
    import hashlib
    import pickle

    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "trapped"),)

    content = pickle.dumps(Trap())
    (tmp_path / "training").write_bytes(hashlib.sha256(content).digest() + content)
    assert Saved(tmp_path).get("training") is None
    assert not (tmp_path / "trapped").exists()


def test_what_keeps_nothing_keeps_nothing(tmp_path, always):
    NOTHING.put("training", {})
    other = Saved(tmp_path, writes=False)
    other.put("training", {})
    assert NOTHING.get("training") is None and not other.due() and not list(tmp_path.iterdir())


def test_it_is_time_to_save_every_so_many_seconds_whatever_the_clock_says(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 0.0)
    now = iter([0.0, 29.0, 30.0, 31.0, 60.0, 61.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    saved = Saved(tmp_path)
    assert [saved.should_save(), saved.due()] == [False, True]
    saved.keep_time()
    assert [saved.should_save(), saved.due()] == [False, True]


def _run(scratch: Path, params, inputs=(), fails: bool = True, stage: str = "stage", processes=None) -> bool:
    """A run of a stage that is interrupted, or not; whether it found what an earlier one has saved."""
    extra = (processes,) if processes else ()
    with pytest.raises(Killed) if fails else nullcontext(), resumable(scratch, stage, params, inputs, *extra) as saved:
        found = saved.get("training") is not None
        saved.put("training", {})
        if fails:
            raise Killed
    return found


def test_a_run_finds_its_own_state_until_one_has_ended_well(tmp_path, tree):
    params = _params(tmp_path, tree)
    assert [_run(tmp_path, params, fails=fails) for fails in (True, True, False)] == [False, True, True]
    assert not list((tmp_path / "resume").iterdir()), "nothing is left of what has ended well"
    assert not _run(tmp_path, params)


def test_quota_and_what_is_not_selected_may_change(tmp_path, tree):
    params = _params(tmp_path, tree)
    _run(tmp_path, params)
    tree["benchmarks"]["tiny"]["generation"]["quota"] = 0.5
    tree["loras"]["r3"] = tiny_lora(rank=9)
    assert _run(tmp_path, _params(tmp_path, tree))


def test_any_other_cause_begins_anew(tmp_path, tree, monkeypatch):
    data = tmp_path / "prepared" / "train.npy"
    data.parent.mkdir()
    data.write_bytes(b"12")
    params = _params(tmp_path, tree)
    assert not _run(tmp_path, params, [data.parent])
    assert _run(tmp_path, params, [data.parent])
    assert not _run(tmp_path, params, [data.parent], stage="other")
    assert not _run(tmp_path, _params(tmp_path, tree | {"seed": 8}), [data.parent])
    assert not _run(tmp_path, _params(tmp_path, tree | {"lora": "r3"}), [data.parent])

    class Two(Processes):
        def gather(self, value):
            return [value, value]

    assert not _run(tmp_path, params, [data.parent], processes=Two(0, 2))
    os.utime(data, ns=(1, 1))
    assert not _run(tmp_path, params, [data.parent])
    (tmp_path / "cache").mkdir()
    data.rename(tmp_path / "cache" / "train.npy")
    (data.parent / "linked").symlink_to(tmp_path / "cache")
    assert not _run(tmp_path, params, [data.parent])
    (tmp_path / "cache" / "train.npy").write_bytes(b"123")
    assert not _run(tmp_path, params, [data.parent])
    for name, value in (("versions", {"torch": "0"}), ("_machine", ["another"]), ("sha256_of", "other code")):
        with monkeypatch.context() as patched:
            patched.setattr(resume, name, lambda *_, value=value: value)
            assert not _run(tmp_path, params, [data.parent]), name
    assert _run(tmp_path, params, [data.parent])


def test_two_runs_of_a_stage_do_not_share_a_state(tmp_path, tree, monkeypatch):
    from pathsynth.core import scratch

    params = _params(tmp_path, tree)
    monkeypatch.setattr(scratch, "PATIENCE", 0)
    with (
        resumable(tmp_path, "stage", params, []),
        pytest.raises(ProcessError, match="another run of the same stage is at work there; wait for it, or end it"),
        resumable(tmp_path, "stage", params, []),
    ):
        pass


def test_states_that_nobody_wants_any_more_go_with_the_next_run(tmp_path, tree):
    _run(tmp_path, _params(tmp_path, tree))
    (old,) = (tmp_path / "resume").glob("*/")
    for path in (*old.iterdir(), old):
        os.utime(path, (1, 1))
    _run(tmp_path, _params(tmp_path, tree | {"seed": 8}))
    assert not old.exists() and len(list((tmp_path / "resume").glob("*/"))) == 1


@pytest.mark.parametrize("text", ["soon", "nan", "-1"])
def test_seconds_that_are_none_are_one_line(text, tmp_path, monkeypatch):
    monkeypatch.setenv(resume.SECONDS_VARIABLE, text)
    assert not Saved().due()
    with pytest.raises(ProcessError, match=f"PATHSYNTH_SAVE_SECONDS: '{text}': must be a number of seconds from 0"):
        Saved(tmp_path)


def test_a_state_that_cannot_be_read_is_not_taken_for_damaged(tmp_path, monkeypatch):
    def fails(_):
        raise OSError(5, "Input/output error")

    (tmp_path / "training").write_bytes(b"")
    monkeypatch.setattr(Path, "read_bytes", fails)
    with pytest.raises(DataError, match="could not be read: Input/output error"):
        Saved(tmp_path).get("training")


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path, tree):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be used: Not a directory"), resumable(
        tmp_path / "file", "stage", _params(tmp_path, tree), []
    ):  # fmt: skip
        pass


def _lora(**sections) -> LoraSettings:
    tree = tiny_lora()
    tree["training"]["max_train_steps"] = 25
    for section, values in sections.items():
        tree[section].update(values)
    return LoraSettings.model_validate(tree)


def _trained_lora(base, prepared, settings, folder: Path, saved: Saved, until: int | None = None):
    """Weights by name, result and curve; interrupted when the curve comes to step `until`."""
    from pathsynth.diffusion.base import load_base
    from pathsynth.finetuning.train import train_lora

    pipeline, curve = load_base(base, "cpu"), []

    def log(step, values):
        curve.append((step, values))
        if step == until:
            raise Killed

    result = train_lora(pipeline, prepared, PROMPTS, settings, 3, log, scratch=folder, saved=saved)
    weights = {name: value for name, value in pipeline.unet.named_parameters() if ".lora_" in name}
    return weights, result, curve


@pytest.mark.parametrize("settings", [
    _lora(objective={"ema_decay": 0.9}, adapter={"lora_dropout": 0.5}),
    _lora(schedule={"lr_scheduler": "cosine_warm_restarts", "warmup_steps": 4, "restart_steps": 6, "restart_mult": 2}),
    _lora(training={"merged": True, "gradient_accumulation_steps": 2}, objective={"rotation_degrees": 20.0}),
    _lora(adapter={"use_dora": True}, training={"mixed_precision": "bf16"}),
], ids=["average and dropout", "warm restarts", "merged, accumulated", "DoRA, bf16"])  # fmt: skip
def test_a_lora_that_was_interrupted_ends_with_the_same_weights(settings, tiny_base, tiny_prepared, tmp_path, always, capsys):
    given = (tiny_base, tiny_prepared, settings, tmp_path)
    weights, result, curve = _trained_lora(*given, NOTHING)
    for until in (10, 20):
        with pytest.raises(Killed):
            _trained_lora(*given, Saved(tmp_path / "state"), until)
    again = _trained_lora(*given, Saved(tmp_path / "state"))
    assert "goes on after step 19 of 25" in capsys.readouterr().err
    assert again[0].keys() == weights.keys() and all((again[0][name] == weights[name]).all() for name in weights)
    assert again[1:] == (result, curve)


@pytest.mark.parametrize(("architecture", "checkpoint"), [("resnet18", "best"), ("squeezenet1_1", "last")])
def test_a_classifier_that_was_interrupted_ends_with_the_same_weights(
    architecture, checkpoint, tiny_prepared, tmp_path, always, capsys
):
    from pathsynth.classifiers.training import train_classifier

    gate = tiny_tree()["benchmarks"]["tiny"]["classifiers"]["gate"]
    settings = ClassifierSettings.model_validate(gate | {"epochs": 5, "architecture": architecture, "checkpoint": checkpoint})

    def trained(saved: Saved, until: int | None = None):
        curve = []

        def log(epoch, values):
            curve.append((epoch, values))
            if epoch == until:
                raise Killed

        classifier, scores = train_classifier(tiny_prepared, settings, 3, "cpu", log, saved=saved)
        return classifier.network.state_dict(), scores, curve

    weights, scores, curve = trained(NOTHING)
    for until in (2, 4):
        with pytest.raises(Killed):
            trained(Saved(tmp_path), until)
    again = trained(Saved(tmp_path))
    assert "goes on after epoch 3 of 5" in capsys.readouterr().err
    assert all((again[0][name] == weights[name]).all() for name in weights)
    assert again[1:] == (scores, curve)


def test_trainings_that_are_done_are_not_done_again(tiny_prepared, tmp_path, monkeypatch):
    from pathsynth.data.generated import LabelledImages
    from pathsynth.evaluation import usefulness

    settings = UsefulnessSettings.model_validate(tiny_tree()["benchmarks"]["tiny"]["evaluation"]["usefulness"])
    made = LabelledImages(tiny_prepared.images("val"), np.repeat(np.arange(9), 2).astype(np.uint8))
    done, tested = [], usefulness._tested

    def counted(*args):
        if len(done) == 3:
            done.append("killed")
            raise Killed
        done.append("trained")
        return tested(*args)

    monkeypatch.setattr(usefulness, "_tested", counted)
    given = (tiny_prepared, made, settings, 7, "cpu")
    with pytest.raises(Killed):
        usefulness.usefulness(*given, trained_on="raw", saved=Saved(tmp_path))
    found = usefulness.usefulness(*given, trained_on="raw", saved=Saved(tmp_path))
    assert done == ["trained"] * 3 + ["killed"] + ["trained"] * 5
    assert found == usefulness.usefulness(*given, trained_on="raw")
