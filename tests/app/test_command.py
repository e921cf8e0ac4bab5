"""`python -m pathsynth app` where it cannot start: one line, before the port is open."""

from __future__ import annotations

import shutil
import socket
import sys

import pytest
from click.testing import CliRunner

from pathsynth.__main__ import main
from pathsynth.app import server


def run(*args: object):
    return CliRunner().invoke(main, ["app", *map(str, args)])


def test_missing_artifacts_are_one_line(tmp_path):
    result = run("--artifacts", tmp_path)
    assert result.exit_code == 1 and result.stderr.count("\n") == 1
    assert result.stderr.startswith(f"error: {tmp_path}/params.yaml: does not exist; pass the folder of the artifacts")


def test_missing_gate_is_one_line(finished, tmp_path):
    pytest.importorskip("gradio")
    result = run("--artifacts", finished, "--gate", tmp_path / "none", "--port", 0)
    assert result.exit_code == 1 and result.stderr.splitlines()[-1].startswith(
        f"error: {tmp_path}/none: does not exist: no trained gate"
    )


def test_damaged_lora_is_one_line_although_its_settings_are_read_first(finished, tmp_path):
    pytest.importorskip("gradio")
    lora = shutil.copytree(finished / "models" / "lora", tmp_path / "lora")
    weights = next(lora.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:100])
    result = run("--artifacts", finished, "--lora", lora, "--port", 0)
    assert result.exit_code == 1 and result.stderr.splitlines()[-1].startswith(f"error: {weights}")


def test_port_in_use_is_one_line(finished):
    with socket.socket() as taken:
        taken.bind((server.HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = run("--artifacts", finished, "--port", port)
    assert result.exit_code == 1
    assert result.stderr == f"error: port {port}: Address already in use; choose another one with --port\n"


def test_missing_gradio_is_one_line_with_remedy(finished, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setattr(server.os, "environ", dict(server.os.environ))
    result = run("--artifacts", finished, "--port", 0)
    assert result.exit_code == 1
    assert result.stderr == "error: app: gradio is not installed; run `make app`, which installs Gradio first\n"
