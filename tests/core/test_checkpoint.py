"""Checkpoints: an interrupted run ends like an uninterrupted one, and a stale checkpoint is never used."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
import time
from contextlib import nullcontext
from pathlib import Path

import filelock
import numpy as np
import pytest
from conftest import tiny_lora, tiny_tree, write_params

from pathsynth.classifiers.settings import ClassifierSettings
from pathsynth.core import checkpoint as checkpoints
from pathsynth.core.checkpoint import INTERVAL_VARIABLE, NO_CHECKPOINT, Checkpoint, open_checkpoint, open_shared
from pathsynth.core.distributed import Processes
from pathsynth.core.errors import DataError, ProcessError
from pathsynth.core.params import load_params
from pathsynth.finetuning.settings import LoraSettings

PROMPTS = [f"tissue number {i}" for i in range(9)]


class Killed(BaseException):
    """Ends a run as a signal would."""


@pytest.fixture
def save_always(monkeypatch) -> None:
    monkeypatch.setenv(INTERVAL_VARIABLE, "0")


def _params(folder: Path, **changes):
    return load_params(write_params(folder / "params.yaml", tiny_tree() | changes))


# saving and loading


def test_saving_takes_at_most_a_twentieth_of_the_time(monkeypatch, tmp_path):
    now = 0.0

    def save(*_):
        nonlocal now
        now += 10.0

    monkeypatch.setattr("torch.save", save)
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: now)
    checkpoint, saved_at = Checkpoint(tmp_path), []
    while now < 1000:
        if checkpoint.should_save():
            saved_at.append(now)
            checkpoint.save("training", {})
        now += 1.0
    assert saved_at[:2] == [30.0, 240.0]
    assert 10.0 * len(saved_at) <= 0.06 * now
    monkeypatch.setenv(INTERVAL_VARIABLE, "0")
    always = Checkpoint(tmp_path)
    always.save("training", {})
    assert always.should_save()


def test_state_is_loaded_as_saved_and_a_damaged_one_is_reported_and_ignored(tmp_path, capsys):
    import torch

    checkpoint = Checkpoint(tmp_path)
    state = {"weights": torch.arange(5.0), "losses": [0.1, 1e-9], "none": None, "points": [(1, {"a": 2.0})]}
    checkpoint.save("training", state)
    loaded = Checkpoint(tmp_path).load("training")
    assert loaded is not None and torch.equal(loaded.pop("weights"), state.pop("weights")) and loaded == state
    content = (tmp_path / "training").read_bytes()
    for damaged in (content[:-1], content[:20], b""):
        (tmp_path / "training").write_bytes(damaged)
        assert checkpoint.load("training") is None
        assert "the checkpoint training is damaged; starting over" in capsys.readouterr().err
    assert checkpoint.load("other") is None


def test_pickled_code_is_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "trapped"),)

    (tmp_path / "training").write_bytes(pickle.dumps(Trap(), protocol=2))
    assert Checkpoint(tmp_path).load("training") is None
    assert not (tmp_path / "trapped").exists()


def test_only_the_main_process_saves(tmp_path, save_always):
    for checkpoint in (NO_CHECKPOINT, Checkpoint(tmp_path, writes=False)):
        checkpoint.save("training", {})
        assert checkpoint.load("training") is None and not checkpoint.should_save()
    assert not list(tmp_path.iterdir())


def test_saving_is_due_every_30_seconds(tmp_path, monkeypatch):
    now = iter([0.0, 29.0, 30.0, 31.0, 60.0, 61.0, 62.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    checkpoint = Checkpoint(tmp_path)
    assert [checkpoint.should_save(), checkpoint.should_save()] == [False, True]
    checkpoint.keep_time()
    assert [checkpoint.should_save(), checkpoint.should_save()] == [False, True]
    assert Checkpoint(tmp_path).seconds == 31


def test_invalid_interval_is_one_line_error(tmp_path, monkeypatch):
    monkeypatch.setenv(INTERVAL_VARIABLE, "soon")
    with pytest.raises(ProcessError, match="PATHSYNTH_SAVE_SECONDS: 'soon' is not a number of seconds"):
        Checkpoint(tmp_path)


# keys


def _found(scratch: Path, params, inputs=(), *, settings=None, fails: bool = True, **options) -> bool:
    """Runs a stage that saves and then fails, or not; returns whether an earlier checkpoint was found."""
    stage, seed = options.pop("stage", "stage"), options.pop("seed", 7)
    run = open_checkpoint(scratch, stage, params, seed, settings or {}, inputs, **options)
    with pytest.raises(Killed) if fails else nullcontext(), run as checkpoint:
        found = checkpoint.load("training") is not None
        checkpoint.save("training", {})
        if fails:
            raise Killed
    return found


def test_checkpoint_is_kept_until_a_run_succeeds(tmp_path):
    params = _params(tmp_path)
    assert [_found(tmp_path, params, fails=fails) for fails in (True, True, False)] == [False, True, True]
    assert not list((tmp_path / "resume").iterdir())
    assert not _found(tmp_path, params)


class TwoProcesses(Processes):
    def gather(self, value):
        return [value, value]


def test_any_change_starts_over(tmp_path, monkeypatch):
    data = tmp_path / "cache" / "train.npy"
    data.parent.mkdir()
    data.write_bytes(b"12")
    (tmp_path / "prepared").symlink_to(data.parent)
    params, inputs = _params(tmp_path), [tmp_path / "prepared"]
    settings = {"lora": LoraSettings.model_validate(tiny_lora())}
    assert not _found(tmp_path, params, inputs, settings=settings)
    assert _found(tmp_path, params, inputs, settings=settings)
    assert not _found(tmp_path, params, inputs, settings=settings, stage="other")
    assert not _found(tmp_path, params, inputs, settings={"lora": LoraSettings.model_validate(tiny_lora(rank=9))})
    assert not _found(tmp_path, params, inputs, settings=settings, processes=TwoProcesses(0, 2))
    assert not _found(tmp_path, params, inputs, settings=settings, seed=8)
    for name in ("package_versions", "describe_hardware", "compute_sha256"):
        with monkeypatch.context() as patched:
            patched.setattr(checkpoints, name, lambda *_: "another")
            assert not _found(tmp_path, params, inputs, settings=settings), name
    # a copy of the same files in another place, where DVC may run the experiment next
    os.utime(data, ns=(1, 1))
    assert _found(tmp_path, params, [data.parent], settings=settings)
    data.write_bytes(b"13")
    assert not _found(tmp_path, params, inputs, settings=settings)


def test_second_run_of_a_stage_goes_on_from_a_copy_and_the_newest_state_wins(tmp_path):
    def run():
        return open_checkpoint(tmp_path, "stage", _params(tmp_path), 7, {}, [])

    with pytest.raises(Killed), run() as first:
        first.save("training", {"step": 1})
        with pytest.raises(Killed), run() as second:
            assert second.load("training") == {"step": 1} and second.folder != first.folder
            second.save("training", {"step": 9})
            raise Killed
        assert first.load("training") == {"step": 1}
        # the third one takes the folder that the second has left
        with pytest.raises(Killed), run() as third:
            assert third.load("training") == {"step": 9} and third.folder == second.folder
            raise Killed
        raise Killed
    with run() as last:
        assert last.load("training") == {"step": 9}
    assert not list((tmp_path / "resume").iterdir())


def test_run_that_ends_while_it_is_copied_does_no_harm(tmp_path, monkeypatch):
    def copy(*_, **__):
        raise shutil.Error([("gone", "gone", "No such file or directory")])

    monkeypatch.setattr(shutil, "copytree", copy)
    with open_checkpoint(tmp_path, "stage", _params(tmp_path), 7, {}, []) as first:
        first.save("training", {})
        with open_checkpoint(tmp_path, "stage", _params(tmp_path), 7, {}, []) as second:
            assert second.load("training") is None


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_file_system_without_locks_is_used_without_them(number, tmp_path, monkeypatch):
    def acquire(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(filelock.FileLock, "acquire", acquire)
    assert [_found(tmp_path, _params(tmp_path)) for _ in range(2)] == [False, True]


def test_abandoned_checkpoints_are_removed_after_a_week(tmp_path):
    _found(tmp_path, _params(tmp_path))
    (old,) = (tmp_path / "resume").iterdir()
    os.utime(old, (1, 1))
    _found(tmp_path, _params(tmp_path), seed=8)
    assert not old.exists() and len(list((tmp_path / "resume").iterdir())) == 1


def test_folder_that_cannot_be_created_is_one_line_error(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(DataError, match="could not be created: Not a directory"),
        open_checkpoint(tmp_path / "file", "stage", _params(tmp_path), 7, {}, []),
    ):
        pass
    with pytest.raises(DataError, match="could not be created: Not a directory"):
        open_shared(tmp_path / "file", "results", _params(tmp_path), 7, {}, [])


def test_shared_results_are_kept_for_the_same_key_until_unused_for_a_week(tmp_path):
    def compute(seed=7, settings=None, inputs=(), **changes) -> bool:
        called = []
        params = _params(tmp_path, **changes)
        open_shared(tmp_path, "results", params, seed, settings or {}, inputs).cached("a", lambda: called.append(1) or {"b": 1})
        return bool(called)

    (tmp_path / "input").write_text("")
    assert [compute(), compute()] == [True, False]
    assert compute(seed=8) and compute(settings={"c": 1}) and compute(inputs=[tmp_path / "input"])
    assert compute(deterministic=True)
    folders = list((tmp_path / "shared").iterdir())
    assert len(folders) == 5
    for folder in folders:
        os.utime(folder, (1, 1))
    assert compute() and len(list((tmp_path / "shared").iterdir())) == 1


def test_damaged_times_are_ignored(tmp_path):
    Checkpoint(tmp_path).keep_time()
    (file,) = tmp_path.iterdir()
    for content in ("", "{}", '{"seconds": null}'):
        file.write_text(content)
        assert Checkpoint(tmp_path).seconds == 0


# resuming


def _interrupt(log, step: int | None):
    """Wraps a log function, and ends the run when it comes to a step."""

    def logged(at, values):
        log((at, values))
        if at == step:
            raise Killed

    return logged


def _lora(**sections) -> LoraSettings:
    tree = tiny_lora()
    tree["training"]["max_train_steps"] = 25
    for section, values in sections.items():
        tree[section].update(values)
    return LoraSettings.model_validate(tree)


@pytest.mark.parametrize("settings", [
    _lora(adapter={"lora_dropout": 0.5}),
    _lora(schedule={"lr_scheduler": "cosine_warm_restarts", "warmup_steps": 4, "restart_steps": 6, "restart_mult": 2}),
    _lora(training={"merged": True, "gradient_accumulation_steps": 2}, objective={"rotation_degrees": 20.0}),
    _lora(adapter={"use_dora": True}, training={"mixed_precision": "bf16"}),
    _lora(optimizer={"name": "muon"}, training={"gradient_accumulation_steps": 2}),
], ids=["dropout", "warm restarts", "merged, accumulated", "DoRA, bf16", "Muon, accumulated"])  # fmt: skip
def test_interrupted_lora_ends_with_the_same_weights(settings, tiny_base, tiny_prepared, tmp_path, save_always, capsys):
    from pathsynth.diffusion.base import load_base
    from pathsynth.finetuning.train import train_lora

    def train(checkpoint: Checkpoint, until: int | None = None):
        pipeline, curve = load_base(tiny_base, "cpu"), []
        options = {"scratch": tmp_path, "checkpoint": checkpoint}
        result = train_lora(pipeline, tiny_prepared, PROMPTS, settings, 3, _interrupt(curve.append, until), **options)
        return {name: value for name, value in pipeline.unet.named_parameters() if ".lora_" in name}, result, curve

    weights, *others = train(NO_CHECKPOINT)
    for until in (10, 20):
        with pytest.raises(Killed):
            train(Checkpoint(tmp_path / "state"), until)
    resumed, *resumed_others = train(Checkpoint(tmp_path / "state"))
    assert "step 19 of 25" in capsys.readouterr().err
    assert resumed.keys() == weights.keys() and all((resumed[name] == weights[name]).all() for name in weights)
    assert resumed_others == others


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "kept"), [("resnet18", "best"), ("squeezenet1_1", "last")])
def test_interrupted_classifier_ends_with_the_same_weights(architecture, kept, tiny_prepared, tmp_path, save_always, capsys):
    from pathsynth.classifiers.training import train_classifier

    gate = tiny_tree()["benchmarks"]["tiny"]["classifiers"]["gate"]
    settings = ClassifierSettings.model_validate(gate | {"epochs": 5, "architecture": architecture, "checkpoint": kept})

    def train(checkpoint: Checkpoint, until: int | None = None):
        curve = []
        log = _interrupt(curve.append, until)
        classifier, scores = train_classifier(tiny_prepared, settings, 3, "cpu", log, checkpoint=checkpoint)
        return classifier.network.state_dict(), scores, curve

    weights, *others = train(NO_CHECKPOINT)
    for until in (2, 4):
        with pytest.raises(Killed):
            train(Checkpoint(tmp_path), until)
    resumed, *resumed_others = train(Checkpoint(tmp_path))
    assert "epoch 3 of 5" in capsys.readouterr().err
    assert all((resumed[name] == weights[name]).all() for name in weights)
    assert resumed_others == others


@pytest.mark.slow
def test_finished_trainings_of_usefulness_are_not_repeated(tiny_prepared, tmp_path, monkeypatch):
    from pathsynth.data.generated import LabelledImages
    from pathsynth.evaluation import usefulness
    from pathsynth.features.structure import structure_features

    settings = usefulness.UsefulnessSettings.model_validate(tiny_tree()["benchmarks"]["tiny"]["evaluation"]["usefulness"])
    images = LabelledImages(tiny_prepared.images("val"), np.repeat(np.arange(9), 2).astype(np.uint8))
    trained, train = [], usefulness.Training

    def count(*args, **kwargs):
        trained.append(len(trained))
        if len(trained) == 4:
            raise Killed
        return train(*args, **kwargs)

    monkeypatch.setattr(usefulness, "Training", count)
    structure = {split: structure_features(tiny_prepared.images(split)) for split in ("train", "val", "test")}
    given = (tiny_prepared, images, structure, settings, 7, "cpu")
    with pytest.raises(Killed):
        usefulness.measure_usefulness(*given, trained_on="raw", checkpoint=Checkpoint(tmp_path), shared=Checkpoint(tmp_path))
    resumed = usefulness.measure_usefulness(
        *given, trained_on="raw", checkpoint=Checkpoint(tmp_path), shared=Checkpoint(tmp_path)
    )
    until_resumed = len(trained)
    assert resumed == usefulness.measure_usefulness(*given, trained_on="raw")
    # three finished, one killed, and the others, of which an undisturbed run has three more
    assert until_resumed == 3 + 1 + (len(trained) - until_resumed - 3) and len(trained) > until_resumed + 3
