"""`python -m pathsynth app`: a local web page that draws images with the trained LoRA."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

from pathsynth.app.server import HOST, build_server, open_socket, serve
from pathsynth.cli.options import FILE, FOLDER, run_as_command
from pathsynth.core.scratch import temporary_folder
from pathsynth.synthesis.artifacts import load_artifacts, load_models


@click.command()
@click.option("--port", type=click.IntRange(0, 65535), default=7860, show_default=True, help="Port; 0 takes a free one.")
@click.option("--artifacts", type=FOLDER, default=".", show_default=True, help="Folder with params.yaml, models/ and base/.")
@click.option("--params", "params_path", type=FILE, help="Other parameter file; relative paths in it start at its folder.")
@click.option("--lora", type=FOLDER, help="Other folder of the LoRA.")
@click.option("--gate", type=FOLDER, help="Other folder of the gate.")
@run_as_command
def app(port, artifacts, params_path, lora, gate):
    """Serves a web page on this machine that draws images of a tissue, and draws saved images again.

    Only this machine can open it, and it sends nothing to any other. Images are deleted when the command ends.

    Requires base, LoRA and gate: run `make repro` or `dvc pull` first. `make app` installs Gradio and runs this command.
    """
    loaded = load_artifacts(artifacts, params_path, lora, gate)
    with open_socket(port) as opened, temporary_folder(Path(tempfile.gettempdir())) as folder:
        server = build_server(loaded, folder)
        load_models(loaded)
        click.echo(f"Open http://{HOST}:{opened.getsockname()[1]} in a browser on this machine. Ctrl-C ends the server.")
        serve(server, opened)
