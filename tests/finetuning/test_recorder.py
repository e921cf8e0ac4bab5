"""Records of a training: they change no weight, and an interrupted training ends with the same ones."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import run_stage, sample_images, tiny_lora, tiny_tree, write_params

from pathsynth.core.checkpoint import INTERVAL_VARIABLE, NO_CHECKPOINT, Checkpoint
from pathsynth.core.distributed import Processes
from pathsynth.core.errors import ModelError
from pathsynth.core.io import write_json
from pathsynth.diffusion.adapter import CONFIG, SNAPSHOTS, WEIGHTS, attach_lora, find_snapshot, save_lora
from pathsynth.diffusion.base import load_base, unet_sha256
from pathsynth.finetuning.recorder import NO_RECORDS, Records
from pathsynth.finetuning.settings import LoraSettings
from pathsynth.finetuning.train import _Training, train_lora

PROMPTS = [f"tissue number {i}" for i in range(9)]
WATCHED = {"validation_steps": 4, "validation_images": 1, "sheet_steps": 5}


class Killed(Exception):
    pass


def settings(validation=WATCHED, adapter=None, **training) -> LoraSettings:
    tree = tiny_lora(**adapter or {}) | {"validation": validation}
    tree["training"] |= {"max_train_steps": 12, **training}
    return LoraSettings.model_validate(tree)


def train(base, prepared, options: LoraSettings, folder: Path | None, checkpoint=NO_CHECKPOINT, until: int | None = None):
    """Trains and saves as the stage does; without a folder nothing is recorded but the curve.

    Raises:
        Killed: after the point of the curve at the step `until`.
    """
    pipeline, curve = load_base(base, "cpu"), []

    def log(step, values):
        curve.append((step, values))
        if step == until:
            raise Killed

    def save(step, result):
        target = folder / "lora" / SNAPSHOTS / str(step)
        save_lora(target, pipeline.unet, options, str(sorted(result.items())), unet_sha256(base))

    records = NO_RECORDS if folder is None else Records(folder / "sheets", save)
    scratch = checkpoint.folder.parent if checkpoint.folder else prepared.folder.parent
    result = train_lora(pipeline, prepared, PROMPTS, options, 3, log, scratch=scratch, checkpoint=checkpoint, records=records)
    if folder is not None:
        save_lora(folder / "lora", pipeline.unet, options, str(sorted(result.items())), unet_sha256(base))
    weights = {name: value.detach().clone() for name, value in pipeline.unet.named_parameters() if ".lora_" in name}
    return weights, result, curve


def equal(first, second) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("adapter", "training"), [({"lora_dropout": 0.5}, {}), ({}, {"merged": True, "mixed_precision": "bf16"})],
    ids=["dropout", "merged, bf16"],
)  # fmt: skip
def test_records_change_no_weight(adapter, training, tiny_base, tiny_prepared, tmp_path):
    bare = train(tiny_base, tiny_prepared, settings({}, adapter, **training), None)
    weights, result, curve = train(tiny_base, tiny_prepared, settings(WATCHED, adapter, snapshots=[3], **training), tmp_path)
    assert equal(weights, bare[0])
    validated = [(step, values["validation/loss"]) for step, values in curve if "validation/loss" in values]
    assert [step for step, _ in validated] == [0, 4, 8, 12] and len(dict(validated)) == len({loss for _, loss in validated})
    assert result == bare[1] | {"validation_loss": round(validated[-1][1], 6)}
    trained = [(step, {key: value for key, value in values.items() if key.startswith("train/")}) for step, values in curve]
    assert [(step, values) for step, values in trained if values] == bare[2]
    assert {path.name for path in (tmp_path / "sheets").iterdir()} == {"0000.png", "0005.png", "0010.png", "0012.png"}
    sheets = files_in(tmp_path / "sheets")
    assert len(set(sheets.values())) == len(sheets), "the images follow the adapter"


@pytest.mark.slow
def test_snapshot_is_the_adapter_of_a_training_that_ended_there(tiny_base, tiny_prepared, tmp_path):
    constant = {"schedule": {"lr_scheduler": "constant", "warmup_steps": 0}}
    long, short = (
        LoraSettings.model_validate(settings({}, max_train_steps=steps, snapshots=kept).model_dump() | constant)
        for steps, kept in ((6, [2, 4]), (4, []))
    )
    train(tiny_base, tiny_prepared, long, tmp_path)
    weights, result, _ = train(tiny_base, tiny_prepared, short, None)
    folder = find_snapshot(tmp_path / "lora", 4)
    assert {path.name for path in folder.iterdir()} == {WEIGHTS, "lora_config.json", "README.md"}
    assert (folder / "README.md").read_text() == str(sorted(result.items()))

    from safetensors.torch import load_file

    saved = {name.removeprefix("unet."): value for name, value in load_file(folder / WEIGHTS).items()}
    assert equal(saved, {name.replace(".default", ""): value for name, value in weights.items()})
    images = []
    for step in (2, 4):
        pipeline = load_base(tiny_base, "cpu")
        attach_lora(pipeline, find_snapshot(tmp_path / "lora", step), unet_sha256(tiny_base))
        images.append(sample_images(pipeline))
    assert (images[0] != images[1]).any()


def save_empty(folder: Path, **config) -> None:
    folder.mkdir(parents=True)
    (folder / WEIGHTS).touch()
    write_json(folder / CONFIG, config)


def test_missing_snapshot_names_those_that_exist(tmp_path):
    for folder in (tmp_path / "lora", *(tmp_path / "lora" / SNAPSHOTS / str(step) for step in (100, 20))):
        save_empty(folder)
    tmp_path = tmp_path / "lora"
    assert find_snapshot(tmp_path, None) == tmp_path and find_snapshot(tmp_path, 20) == tmp_path / SNAPSHOTS / "20"
    with pytest.raises(ModelError, match=r"generation.snapshot: .*step 50; allowed: 20, 100, null for the end of the training"):
        find_snapshot(tmp_path, 50)


def test_snapshot_of_another_training_is_refused(tmp_path):
    folder = tmp_path / "lora"
    save_empty(folder / SNAPSHOTS / "20", rank=4)
    with pytest.raises(ModelError, match=f"has no {WEIGHTS}; run the stage train_lora first"):
        find_snapshot(folder, 20)
    for name in (WEIGHTS, CONFIG):
        (folder / name).write_text('{"rank": 8}')
    with pytest.raises(ModelError, match=r"snapshots/20: belongs to another training than .*; run the stage train_lora again"):
        find_snapshot(folder, 20)


@pytest.mark.slow
def test_stage_that_is_started_directly_removes_adapter_and_snapshots_of_the_last_training(tiny_base, tiny_prepared, tmp_path):
    def run(**training):
        tree = tiny_tree(tiny_base)
        tree["loras"]["r2"]["training"] |= training
        params = write_params(tmp_path / "params.yaml", tree)
        outs = {"--out": "lora", "--metrics": "lora.json", "--curves": "curves", "--sheets": "sheets"}
        paths = {name: tmp_path / path for name, path in (outs | {"--scratch": "scratch", "--logs": "logs"}).items()}
        args = {"--params": params, "--prepared": tiny_prepared.folder} | paths
        return run_stage("train_lora", *(part for pair in args.items() for part in pair))

    assert run(max_train_steps=3, snapshots=[1, 2]).exit_code == 0
    assert find_snapshot(tmp_path / "lora", 2).is_dir()
    (tmp_path / "lora" / "notes.txt").touch()
    assert run(max_train_steps=3, snapshots=[1]).exit_code == 0
    assert {path.name for path in (tmp_path / "lora" / SNAPSHOTS).iterdir()} == {"1"}
    # ends after the snapshot
    failed = run(max_train_steps=30, snapshots=[1], mixed_precision="fp16")
    assert failed.exit_code == 1 and {path.name for path in (tmp_path / "lora").iterdir()} == {"notes.txt"}


@pytest.mark.slow
def test_interrupted_training_ends_with_the_same_records(tiny_base, tiny_prepared, tmp_path, monkeypatch, capsys):
    options = settings(snapshots=[2, 7], merged=True)
    weights, *others = train(tiny_base, tiny_prepared, options, tmp_path / "whole")
    # a record is a checkpoint as well, however long the interval
    for interval, last in (("0", 9), ("1000", 7)):
        monkeypatch.setenv(INTERVAL_VARIABLE, interval)
        state = tmp_path / interval / "state"
        state.mkdir(parents=True)
        for number, until in enumerate((0, 4, 8, 10)):
            with pytest.raises(Killed):
                train(tiny_base, tiny_prepared, options, tmp_path / f"{interval}-{number}", Checkpoint(state), until)
        # DVC removes the outs before it runs a stage again
        resumed, *resumed_others = train(tiny_base, tiny_prepared, options, tmp_path / f"{interval}-end", Checkpoint(state))
        assert f"resuming after step {last} of 12" in capsys.readouterr().err
        assert equal(resumed, weights) and resumed_others == others
        assert files_in(tmp_path / f"{interval}-end") == files_in(tmp_path / "whole")
        assert {f"lora/{SNAPSHOTS}/{step}/{WEIGHTS}" for step in (2, 7)} <= set(files_in(tmp_path / "whole"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sheet-0", "snapshot-2"])
def test_training_starts_over_if_a_record_is_damaged(name, tiny_base, tiny_prepared, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(INTERVAL_VARIABLE, "0")
    options = settings(snapshots=[2])
    weights, *others = train(tiny_base, tiny_prepared, options, tmp_path / "whole")
    with pytest.raises(Killed):
        train(tiny_base, tiny_prepared, options, tmp_path / "killed", Checkpoint(tmp_path / "state"), 10)
    (tmp_path / "state" / name).write_bytes(b"damaged")
    again, *other = train(tiny_base, tiny_prepared, options, tmp_path / "again", Checkpoint(tmp_path / "state"))
    message = capsys.readouterr().err
    assert f"{name} is damaged; starting over" in message and "resuming" not in message
    assert equal(again, weights) and other == others
    assert files_in(tmp_path / "again") == files_in(tmp_path / "whole")


def test_only_the_main_process_records(tiny_base, tiny_prepared, tmp_path):
    from pathsynth.finetuning.recorder import Recorder

    training = SimpleNamespace(settings=settings(), processes=Processes(index=1, count=2))
    recorder = Recorder(training, None, tiny_prepared, Records(tmp_path / "sheets"), NO_CHECKPOINT)
    assert recorder.record(0, []) == {} and not (tmp_path / "sheets").exists()


def test_weights_are_checked_only_where_a_state_is_saved(tiny_base, tiny_prepared, tmp_path, monkeypatch):
    checked, has_finite_weights = [], _Training.has_finite_weights
    monkeypatch.setattr(_Training, "has_finite_weights", lambda self: checked.append(1) or has_finite_weights(self))
    options = settings({"sheet_steps": 1}, max_train_steps=2)
    train(tiny_base, tiny_prepared, options, tmp_path)
    assert len(checked) == 1, "after the last step"
    train(tiny_base, tiny_prepared, options, tmp_path, Checkpoint(tmp_path / "state"))
    assert len(checked) == 1 + 4


@pytest.mark.parametrize("snapshots", [[7, 2], [2, 2], [12], [0]])
def test_snapshots_are_ascending_unique_and_before_the_end(snapshots):
    with pytest.raises(ValueError, match=r"ascending, unique, and less than max_train_steps \(12\)|greater than 0"):
        settings(snapshots=snapshots)
