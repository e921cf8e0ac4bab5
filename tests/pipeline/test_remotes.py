"""Sharing a finished run by S3, SSH, HTTP and a folder, with real servers on the loopback and commands of docs/sharing.md."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from conftest import ROOT, git, write_yaml
from dvc_cache import checksums_of, files_of, objects, path_of
from servers import BUCKET, SSHD, http_server, s3_server, ssh_server

from pathsynth.cli.synthesize import synthesize
from pathsynth.core.io import compute_sha256
from pathsynth.core.params import read_yaml
from pathsynth.data import labels
from pathsynth.diffusion.adapter import WEIGHTS
from pathsynth.synthesis.manifest import read_manifest
from pathsynth.synthesis.records import Record

pytestmark = pytest.mark.slow

SHARING = (ROOT / "docs" / "sharing.md").read_text()
SECRETS = ("KEY", "SECRET", "/path/to/key", "/path/to/key.json", "NAME")
# Several commands in one process: starting DVC takes longer than most of them.
RUN = """
import shlex, sys
from dvc.cli import main
for line in sys.argv[1:]:
    print("$ dvc", line, flush=True)
    if code := main(shlex.split(line)):
        sys.exit(code)
"""
ARTIFACTS = read_yaml(ROOT / "dvc.yaml")["artifacts"]


def dvc(folder: Path, *lines: str, fails: bool = False) -> str:
    """Runs dvc commands in `folder` up to the first that fails, and returns what they printed."""
    run = subprocess.run([sys.executable, "-c", RUN, *lines], cwd=folder, capture_output=True, text=True, timeout=300)
    assert (run.returncode != 0) == fails, run.stdout + run.stderr
    return run.stdout + run.stderr


def stages_run(output: str) -> set[str]:
    return set(re.findall(r"Running stage '([\w@]+)'", output))


def clone(source: Path, folder: Path) -> Path:
    """A clone in which one can commit."""
    git(source.parent, "clone", "-q", source, folder)
    for key, value in {"user.name": "t", "user.email": "t@example.org"}.items():
        git(folder, "config", key, value)
    return folder


def documented(where: str, **values: str) -> list[str]:
    """The dvc commands in a row of docs/sharing.md, without `dvc`, with values for their placeholders."""
    row = next(line for line in SHARING.splitlines() if line.startswith(f"| {where} |"))
    lines = re.findall(r"`dvc (remote [^`]+)`", row)
    for placeholder, value in values.items():
        lines = [re.sub(rf"(?<= ){re.escape(placeholder)}$", value, line) for line in lines]
    return lines


def checksums_in(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module", autouse=True)
def isolated_settings(tmp_path_factory):
    """Hides the settings, keys, proxies and caches of the user who runs the tests."""
    folder = tmp_path_factory.mktemp("settings")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    nowhere = {name: str(folder / name) for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE")}
    dirs = {f"DVC_{name}_DIR": str(folder / name) for name in ("GLOBAL_CONFIG", "SYSTEM_CONFIG", "SITE_CACHE")}
    (folder / "GLOBAL_CONFIG").mkdir()
    # otherwise DVC asks the network for a newer version
    (folder / "GLOBAL_CONFIG" / "config").write_text("[core]\n    check_update = false\n    analytics = false\n")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in (nowhere | dirs | {"PATH": path, "AWS_MAX_ATTEMPTS": "1"}).items():
            patch.setenv(name, value)
        for name in ("NO_PROXY", "no_proxy"):
            patch.setenv(name, "127.0.0.1,localhost")
        yield


def publish(author: Path, folder: Path, lines: list[str]) -> Path:
    """A clone that shares the author's cache, in which the commands add a remote."""
    mine = clone(author, folder / "author")
    cache = f"config --local cache.dir {shlex.quote(str(author / '.dvc' / 'cache'))}"
    dvc(mine, cache, *lines, "remote modify store verify true")
    git(mine, "commit", "-qam", "remote")
    return mine


def colleague(mine: Path, name: str) -> Path:
    """A fresh clone with the author's keys and an empty cache."""
    fresh, local = clone(mine, mine.parent / name), mine / ".dvc" / "config.local"
    parts = local.read_text().split("[")
    (fresh / ".dvc" / "config.local").write_text("[".join(part for part in parts if not part.startswith("cache]")))
    return fresh


def run_cache(folder: Path) -> set[str]:
    return {path.name for path in (folder / ".dvc" / "cache" / "runs").glob("??/*/*")}


def check_pull(fresh: Path, mine: Path, runs: set[str]) -> None:
    """One pull brings all outs and the run cache, and leaves nothing to run."""
    output = dvc(fresh, "pull --run-cache", "status", "repro", "exp show --csv")
    assert "Data and pipelines are up to date.\n$ dvc repro" in output and stages_run(output) <= {"report"}
    assert re.search(r"^,main,baseline,[^\n]*,0\.\d+,", output, re.M)
    assert read_yaml(fresh / "dvc.lock") == read_yaml(mine / "dvc.lock")
    assert run_cache(fresh) == runs


@pytest.fixture(scope="module")
def store(own_workspace, tmp_path_factory) -> SimpleNamespace:
    """A folder with everything, and the author's clone that pushed it there."""
    folder = tmp_path_factory.mktemp("shared")
    mine = publish(own_workspace, folder, [f"remote add -d store {folder}/store"])
    dvc(mine, "push --run-cache")
    return SimpleNamespace(folder=folder / "store", author=mine)


class TestServers:
    def test_folder(self, store, own_workspace):
        check_pull(colleague(store.author, "fresh"), store.author, run_cache(own_workspace))

    def test_s3(self, own_workspace, tmp_path):
        with s3_server() as s3:
            lines = [line.replace("BUCKET", BUCKET) for line in documented("S3", KEY=s3.key, SECRET=s3.secret)]
            mine = publish(own_workspace, tmp_path, [*lines, f"remote modify store endpointurl {s3.url}"])
            wrong = dvc(mine, "remote modify --local store secret_access_key no", "push", fails=True)
            assert "Forbidden" in wrong
            dvc(mine, f"remote modify --local store secret_access_key {s3.secret}", "push --run-cache")
            check_pull(colleague(mine, "fresh"), mine, run_cache(own_workspace))

    def test_s3_without_checksums(self, own_workspace, tmp_path):
        with s3_server(checksums=False) as s3:
            values = {"KEY": s3.key, "SECRET": s3.secret, "https://HOST": s3.url}
            lines = [line.replace("BUCKET", BUCKET) for line in documented("other S3-compatible store", **values)]
            shutil.copy(ROOT / ".dvc" / "s3-compatible.ini", own_workspace / ".dvc")
            git(own_workspace, "add", ".dvc/s3-compatible.ini")
            git(own_workspace, "commit", "-qm", "settings of S3-compatible stores")
            with pytest.MonkeyPatch.context() as patch:
                patch.delenv("AWS_CONFIG_FILE")
                mine = publish(own_workspace, tmp_path, [line for line in lines if "configpath" not in line])
                assert "x-amz-content-sha256 must be UNSIGNED-PAYLOAD" in dvc(mine, "push", fails=True)
                dvc(mine, *[line for line in lines if "configpath" in line], "push --run-cache")
                git(mine, "commit", "-qam", "settings")
                check_pull(colleague(mine, "fresh"), mine, run_cache(own_workspace))

    @pytest.mark.skipif(SSHD is None, reason="openssh-server is not installed")
    def test_ssh(self, own_workspace, tmp_path):
        (tmp_path / "keys").mkdir()
        with ssh_server(tmp_path / "keys") as ssh:
            url = f"ssh://127.0.0.1:{ssh.port}{tmp_path}/store"
            values = {"ssh://HOST/path/to/store": url, "/path/to/key": str(ssh.unknown_key), "NAME": ssh.user}
            mine = publish(own_workspace, tmp_path, documented("SSH", **values))
            assert f"Permission denied for user {ssh.user}" in dvc(mine, "push", fails=True)
            dvc(mine, f"remote modify --local store keyfile {ssh.key}", "push --run-cache")
            check_pull(colleague(mine, "fresh"), mine, run_cache(own_workspace))

    def test_http_brings_everything_but_the_run_cache(self, store):
        with http_server(store.folder) as url:
            fresh = colleague(store.author, "fresh_http")
            dvc(fresh, f"remote modify store url {url}")
            check_pull(fresh, store.author, set())

    @pytest.mark.parametrize(
        "where", ["S3", "other S3-compatible store", "Google Cloud", "Azure", "SSH", "shared folder", "HTTP, read-only"]
    )
    def test_documented_commands_keep_secrets_out_of_git(self, where, tmp_path):
        git(tmp_path, "init", "-q", ".")
        lines = documented(where, **{word: f"hidden{number}" for number, word in enumerate(SECRETS)})
        dvc(tmp_path, "init -q", *lines, *re.findall(r"`dvc (remote modify store verify true)`", SHARING))
        git(tmp_path, "add", "-A")
        seen = git(tmp_path, "diff", "--cached")
        assert "verify = true" in seen and "hidden" not in seen
        assert where == "shared folder" or "hidden" in (tmp_path / ".dvc" / "config.local").read_text()


class TestPartialTransfers:
    def test_damaged_object_is_found_and_replaced_as_documented(self, store, own_workspace):
        checksum = files_of(own_workspace, "models/lora")["pytorch_lora_weights.safetensors"]
        place = path_of(checksum)
        good = (store.folder / place).read_bytes()
        (store.folder / place).chmod(0o600)
        (store.folder / place).write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        careful = colleague(store.author, "careful")
        output = dvc(careful, "pull -v models/lora", fails=True)
        assert "Checkout failed for following targets:\nmodels/lora" in output
        assert re.search(f"corrupted cache file '.*{place}'", output) and not (careful / ".dvc" / "cache" / place).exists()
        (store.folder / place).write_bytes(good)
        dvc(careful, "pull models/lora")
        assert checksums_in(careful / "models/lora")["pytorch_lora_weights.safetensors"] == checksum

    def test_repro_fetches_only_what_it_needs(self, store, own_workspace):
        fresh = colleague(store.author, "frugal")
        path = fresh / "configs" / "benchmarks" / "tiny.yaml"
        benchmark = read_yaml(path)
        benchmark["classifiers"]["gate"]["label_smoothing"] = 0.1
        write_yaml(path, benchmark)
        gate = "train_classifier@gate"
        assert stages_run(dvc(fresh, f"repro --pull --allow-missing {gate}")) == {gate}
        fetched = (objects(fresh / ".dvc" / "cache") & objects(store.folder)) - checksums_of(fresh, "models/gate")
        assert fetched == checksums_of(own_workspace, "data/prepared")


@pytest.fixture(scope="module")
def bare(store, tmp_path_factory) -> Path:
    """The author's git repository as a server has it, with a version of every artifact and an experiment."""
    mine, folder = store.author, tmp_path_factory.mktemp("hub") / "shared.git"
    for artifact in ARTIFACTS:
        git(mine, "tag", "-a", f"{artifact}@v1.0.0", "-m", "first")
    git(mine.parent, "clone", "-q", "--bare", mine, folder)
    git(mine, "remote", "set-url", "origin", folder)
    dvc(mine, "checkout -q", "exp run -q -n other -S lora=r3", "exp push origin other")
    git(mine, "checkout", "-q", ".")
    dvc(mine, "checkout -q")
    return folder


def synthesize_one(out: Path, *options: object) -> Record:
    """The first image that passes the gate, of any tissue: a classifier this small predicts the same few for everything."""
    for label in labels.PATHMNIST:
        args = [label, "--max-attempts", "50", "--out", out, *options]
        result = CliRunner().invoke(synthesize, [str(arg) for arg in args])
        if result.exit_code == 0:
            (record,) = read_manifest(out / "manifest.csv")
            return record
    raise AssertionError(result.output)


def rank(adapter: Path) -> int:
    return json.loads((adapter / "lora_config.json").read_text())["adapter"]["rank"]


class TestExperimentsAndArtifacts:
    def test_experiment_reaches_a_colleague_through_git_and_the_remote(self, bare, tmp_path):
        fresh = clone(bare, tmp_path / "fresh")
        output = dvc(fresh, "exp list origin", "exp pull origin other", "exp show --csv", "exp apply other", "status")
        assert "Data and pipelines are up to date" in output and re.search(r"^other,[0-9a-f]+,branch", output, re.M)
        assert rank(fresh / "models" / "lora") == 3
        record = synthesize_one(tmp_path / "out", "--artifacts", fresh)
        assert record.lora == "r3" and record.lora_sha256 == compute_sha256(fresh / "models" / "lora" / WEIGHTS)

    def test_artifacts_work_in_another_repository_and_follow_updates(self, bare, store, tmp_path):
        mine, elsewhere = store.author, tmp_path / "elsewhere"
        git(tmp_path, "init", "-q", elsewhere)
        (elsewhere / "got").mkdir()
        gets = [f"artifacts get {bare} {name} -o got/{name}" for name in ARTIFACTS]
        places = [f"get -q {bare} {path} -o got/{path}" for path in ("base", "configs", "params.yaml")]
        dvc(elsewhere, "init -q", *gets, *places, f"import -q {bare} models/lora")
        got = elsewhere / "got"
        for name, artifact in ARTIFACTS.items():
            assert checksums_in(got / name) == checksums_in(mine / artifact["path"]), name
        places = ("--params", got / "params.yaml", "--lora", got / "lora", "--gate", got / "gate")
        record = synthesize_one(tmp_path / "out", *places)
        assert record.lora == "r2" and record.lora_sha256 == compute_sha256(got / "lora" / WEIGHTS)
        assert rank(elsewhere / "lora") == 2
        dvc(mine, "exp apply other")
        git(mine, "commit", "-qam", "another adapter")
        git(mine, "push", "-q", "origin", "main")
        dvc(elsewhere, "update lora.dvc")
        assert rank(elsewhere / "lora") == 3
