"""Sharing a finished run by S3, SSH, HTTP and a folder, with real servers on the loopback, by the lines of docs/sharing.md."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import ROOT, write_params
from dvc_cache import checksums_of, files_of, objects, path_of
from servers import BUCKET, Relay, http_server, s3_server, ssh_server

from pathsynth.cli.synthesize import synthesize
from pathsynth.core.io import sha256_of
from pathsynth.core.params import read_yaml
from pathsynth.data import labels
from pathsynth.diffusion.adapter import WEIGHTS
from pathsynth.synthesis.manifest import read_manifest
from pathsynth.synthesis.records import Record
from pathsynth.synthesis.synthesizer import GATE_WEIGHTS

SHARING = (ROOT / "docs" / "sharing.md").read_text()
SECRETS = {"KEY", "SECRET", "/path/to/key", "/path/to/key.json", "NAME"}
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


@dataclass(frozen=True)
class Said:
    """How a process has ended and what it said."""

    code: int
    text: str

    def ran(self) -> set[str]:
        """The stages that were run."""
        return set(re.findall(r"Running stage '([\w@]+)'", self.text))


def dvc(folder: Path, *lines: str) -> Said:
    """Runs dvc commands in `folder`, up to the first that fails."""
    run = subprocess.run([sys.executable, "-c", RUN, *lines], cwd=folder, capture_output=True, text=True, timeout=300)
    return Said(run.returncode, run.stdout + run.stderr)


def well(folder: Path, *lines: str) -> Said:
    """The same, where every command has to end well."""
    said = dvc(folder, *lines)
    assert said.code == 0, said.text
    return said


def git(folder: Path, *args: object) -> str:
    return subprocess.run(["git", *map(str, args)], cwd=folder, check=True, capture_output=True, text=True).stdout


def clone(source: Path, folder: Path) -> Path:
    """A copy in which one can commit."""
    git(source.parent, "clone", "-q", source, folder)
    for key, value in {"user.name": "t", "user.email": "t@example.org"}.items():
        git(folder, "config", key, value)
    return folder


def documented(where: str, **values: str) -> list[str]:
    """The dvc commands in the row of docs/sharing.md, without their first word, with the user's own words put in."""
    row = next(line for line in SHARING.splitlines() if line.startswith(f"| {where} |"))
    lines = re.findall(r"`dvc (remote [^`]+)`", row)
    for placeholder, value in values.items():
        lines = [re.sub(rf"(?<= ){re.escape(placeholder)}$", value, line) for line in lines]
    return lines


def checksum(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def files_in(folder: Path) -> dict[str, str]:
    """The files of a folder and their checksums; of their bytes pytest would show a difference for minutes."""
    return {str(path.relative_to(folder)): checksum(path) for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module", autouse=True)
def settings(tmp_path_factory):
    """No settings, keys, proxies or notes of the user who runs the tests, and no long waiting for a server that is gone."""
    folder = tmp_path_factory.mktemp("settings")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    nowhere = {name: str(folder / name) for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE")}
    dirs = {f"DVC_{name}_DIR": str(folder / name) for name in ("GLOBAL_CONFIG", "SYSTEM_CONFIG", "SITE_CACHE")}
    (folder / "GLOBAL_CONFIG").mkdir()
    # else DVC asks the network for a newer version, and waits where there is none
    (folder / "GLOBAL_CONFIG" / "config").write_text("[core]\n    check_update = false\n    analytics = false\n")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in (nowhere | dirs | {"PATH": path, "AWS_MAX_ATTEMPTS": "1"}).items():
            patch.setenv(name, value)
        for name in ("NO_PROXY", "no_proxy"):
            patch.setenv(name, "127.0.0.1,localhost")
        yield


@pytest.fixture(scope="module")
def author(workspace, tmp_path_factory, settings) -> Path:
    """A copy of the finished repository, committed, with its cache."""
    folder = tmp_path_factory.mktemp("author") / "repository"
    shutil.copytree(workspace, folder)
    for key, value in {"user.name": "t", "user.email": "t@example.org"}.items():
        git(folder, "config", key, value)
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "scores", "--allow-empty")
    return folder


def publish(author: Path, folder: Path, lines: list[str]) -> Path:
    """A clone of the author's repository beside its cache, in which the lines set up the remote."""
    mine = clone(author, folder / "author")
    well(
        mine,
        f"config --local cache.dir {shlex.quote(str(author / '.dvc' / 'cache'))}",
        *lines,
        "remote modify store verify true",
    )
    git(mine, "commit", "-qam", "remote")
    return mine


def colleague(mine: Path, name: str) -> Path:
    """A fresh clone, with the author's keys where there are any and nothing of the author's cache."""
    fresh, local = clone(mine, mine.parent / name), mine / ".dvc" / "config.local"
    parts = local.read_text().split("[")
    (fresh / ".dvc" / "config.local").write_text("[".join(part for part in parts if not part.startswith("cache]")))
    return fresh


def check_all_is_there(fresh: Path, mine: Path) -> None:
    """Nothing is left to run, and every experiment is shown."""
    said = well(fresh, "status", "repro", "exp show --csv")
    assert "Data and pipelines are up to date.\n$ dvc repro" in said.text
    assert said.ran() <= {"report"}
    assert re.search(r"^,main,baseline,[^\n]*,0\.\d+,", said.text, re.M)
    assert read_yaml(fresh / "dvc.lock") == read_yaml(mine / "dvc.lock")


def runs(folder: Path) -> set[str]:
    return {path.name for path in (folder / ".dvc" / "cache" / "runs").glob("??/*/*")}


def check_everything_comes(fresh: Path, mine: Path, author: Path) -> None:
    """One pull is all that a colleague needs, also of what other parameters gave."""
    well(fresh, "pull --run-cache")
    check_all_is_there(fresh, mine)
    assert runs(fresh) == runs(author)


@pytest.fixture(scope="module")
def store(author, tmp_path_factory):
    """A folder with everything, and the author's clone that has pushed it there."""
    folder = tmp_path_factory.mktemp("shared")
    mine = publish(author, folder, [f"remote add -d store {folder}/store"])
    well(mine, "push --run-cache")
    return folder / "store", mine


@pytest.mark.slow
def test_a_folder_gives_a_colleague_everything(store, author):
    mine = store[1]
    check_everything_comes(colleague(mine, "fresh"), mine, author)


@pytest.mark.slow
def test_s3_gives_a_colleague_everything_after_a_wrong_key_a_missing_bucket_and_a_cut_off(author, tmp_path):
    with s3_server() as s3, Relay(s3.port) as relay:
        lines = [line.replace("BUCKET", BUCKET) for line in documented("S3", KEY=s3.key, SECRET=s3.secret)]
        mine = publish(author, tmp_path, [*lines, f"remote modify store endpointurl http://127.0.0.1:{relay.port}"])
        before = files_in(author / ".dvc" / "cache" / "runs"), objects(author / ".dvc" / "cache")
        right, wrong = (
            f"remote modify --local store secret_access_key {s3.secret}",
            "remote modify --local store secret_access_key no",
        )
        said = dvc(mine, wrong, "push --run-cache")
        assert said.code and "The request signature we calculated does not match" in said.text
        said = dvc(mine, right, "remote modify store url s3://elsewhere/pathsynth", "push --run-cache")
        assert said.code and "The specified bucket does not exist" in said.text
        well(mine, f"remote modify store url s3://{BUCKET}/pathsynth")
        relay.left = 1_000_000
        said = dvc(mine, "push --run-cache")
        assert said.code and re.search("Connection was closed|Could not connect|Connection reset", said.text), said.text
        relay.left = None
        well(mine, "push --run-cache")
        assert (files_in(author / ".dvc" / "cache" / "runs"), objects(author / ".dvc" / "cache")) == before
        check_everything_comes(colleague(mine, "fresh"), mine, author)


@pytest.mark.slow
def test_ssh_gives_a_colleague_everything_after_a_wrong_key_and_a_cut_off(author, tmp_path):
    (tmp_path / "keys").mkdir()
    with ssh_server(tmp_path / "keys") as ssh, Relay(ssh.port) as relay:
        url = f"ssh://127.0.0.1:{relay.port}{tmp_path}/store"
        words = {"ssh://HOST/path/to/store": url, "/path/to/key": str(ssh.unknown_key), "NAME": ssh.user}
        mine = publish(author, tmp_path, documented("SSH", **words))
        said = dvc(mine, "push --run-cache")
        assert said.code and f"Permission denied for user {ssh.user}" in said.text
        well(mine, f"remote modify --local store keyfile {ssh.key}", "push --run-cache")
        fresh = colleague(mine, "fresh")
        relay.left = 1_000_000
        said = dvc(fresh, "pull --run-cache")
        assert said.code and re.search("Connection closed|Connection not open|Connection lost", said.text)
        relay.left = None
        check_everything_comes(fresh, mine, author)


@pytest.mark.slow
def test_http_gives_a_colleague_what_the_lock_names_but_no_run_cache(store):
    folder, mine = store
    with http_server(folder) as port, Relay(port) as relay:
        fresh = colleague(mine, "fresh_http")
        well(fresh, f"remote modify store url http://127.0.0.1:{relay.port}")
        relay.left = 1_000_000
        said = dvc(fresh, "pull --run-cache")
        assert said.code and re.search("Response payload is not completed|Server disconnected", said.text), said.text
        relay.left = None
        well(fresh, "pull --run-cache")
        assert not runs(fresh)
        check_all_is_there(fresh, mine)


def damage(path: Path) -> None:
    """Flips a bit of a file."""
    content = path.read_bytes()
    path.chmod(0o600)
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    path.chmod(0o444)


@pytest.mark.slow
def test_a_damaged_object_of_a_remote_is_found_by_verify_alone_and_mended_by_a_good_copy(store, author):
    folder, mine = store
    right = files_of(author, "models/lora")["pytorch_lora_weights.safetensors"]
    name = path_of(right)
    damage(folder / name)
    careless = colleague(mine, "careless")
    well(careless, "remote modify store verify false", "pull models/lora")
    assert "changed outs:\n\t\tmodified" not in well(careless, "status").text
    assert checksum(careless / "models/lora/pytorch_lora_weights.safetensors") != right
    careful = colleague(mine, "careful")
    said = dvc(careful, "pull -v models/lora")
    assert said.code and "Checkout failed for following targets:\nmodels/lora" in said.text
    assert re.search(f"corrupted cache file '.*{name}'", said.text)
    assert not (careful / ".dvc" / "cache" / name).exists()
    # to DVC an object that is there is a good one
    assert "Everything is up to date" in well(mine, "push").text
    (folder / name).chmod(0o600)
    shutil.copy(author / ".dvc" / "cache" / name, folder / name)
    well(careful, "pull models/lora")
    assert checksum(careful / "models/lora/pytorch_lora_weights.safetensors") == right


@pytest.mark.slow
def test_only_what_is_needed_is_fetched(store, author):
    fresh = colleague(store[1], "frugal")
    params = read_yaml(fresh / "params.yaml")
    params["benchmarks"]["tiny"]["classifiers"]["gate"]["label_smoothing"] = 0.1
    write_params(fresh / "params.yaml", params)
    gate = "train_classifier@gate"
    assert well(fresh, f"repro --pull --allow-missing {gate}").ran() == {gate}
    fetched = (objects(fresh / ".dvc" / "cache") & objects(store[0])) - checksums_of(fresh, "models/gate")
    assert fetched == checksums_of(author, "data/prepared")


@pytest.fixture(scope="module")
def bare(store, tmp_path_factory) -> Path:
    """The author's git repository as a server has it, with a version of every artifact and an experiment."""
    mine, folder = store[1], tmp_path_factory.mktemp("hub") / "shared.git"
    for artifact in ARTIFACTS:
        git(mine, "tag", "-a", f"{artifact}@v1.0.0", "-m", "first")
    git(mine.parent, "clone", "-q", "--bare", mine, folder)
    git(mine, "remote", "set-url", "origin", folder)
    well(mine, "checkout -q", "exp run -q -n other -S lora=r3", "exp push origin other")
    git(mine, "checkout", "-q", ".")
    well(mine, "checkout -q")
    return folder


@pytest.mark.slow
def test_an_experiment_reaches_a_colleague_through_git_and_the_remote(bare, tmp_path):
    fresh = clone(bare, tmp_path / "fresh")
    mine = (fresh / "params.yaml").read_text() + "# mine, not committed\n"
    (fresh / "params.yaml").write_text(mine)
    said = well(fresh, "exp list origin", "exp pull origin other", "exp show --csv", "exp apply other", "status")
    assert git(fresh, "show", "refs/exps/apply/stash:params.yaml") == mine
    assert "Data and pipelines are up to date" in said.text
    assert re.search(r"^other,[0-9a-f]+,branch", said.text, re.M)
    assert rank(fresh / "models" / "lora") == 3
    drawn = drawn_with(tmp_path / "out", "--artifacts", fresh)
    assert (drawn.lora, drawn.gate_sha256) == ("r3", sha256_of(fresh / "models" / "gate" / GATE_WEIGHTS))


@pytest.mark.slow
def test_a_name_that_is_taken_is_refused_and_what_has_it_stays(bare, tmp_path):
    fresh = clone(bare, tmp_path / "fresh")
    well(fresh, "exp pull origin other")
    before = (fresh / "params.yaml").read_text(), well(fresh, "exp list --sha-only").text
    said = dvc(fresh, "exp run -n other -S seed=8")
    assert said.code and re.search("ERROR: .*Experiment conflicts with existing experiment 'other'", said.text), said.text
    assert not said.ran()
    assert before == ((fresh / "params.yaml").read_text(), well(fresh, "exp list --sha-only").text)


def drawn_with(out: Path, *places: object) -> Record:
    """The first image to pass the gate, of any tissue: this small, a gate sees the same few in everything."""
    for label in labels.PATHMNIST:
        args = [label, "--max-attempts", "50", "--out", out, *places]
        result = CliRunner().invoke(synthesize, [str(arg) for arg in args])
        if result.exit_code == 0:
            (record,) = read_manifest(out / "manifest.csv")
            return record
        assert "refused by the gate" in result.stderr, result.output
    raise AssertionError("no image passed")


def rank(adapter: Path) -> int:
    return json.loads((adapter / "lora_config.json").read_text())["adapter"]["rank"]


@pytest.mark.slow
def test_artifacts_are_of_use_in_another_repository_which_follows_them(bare, store, tmp_path):
    mine, elsewhere = store[1], tmp_path / "elsewhere"
    git(tmp_path, "init", "-q", elsewhere)
    gets = [f"artifacts get {bare} {name} -o got/{name}" for name in ARTIFACTS]
    (elsewhere / "got").mkdir()
    well(elsewhere, "init -q", *gets, f"import -q {bare} models/gate", f"import -q {bare} models/lora")
    for name, artifact in ARTIFACTS.items():
        assert files_in(elsewhere / "got" / name) == files_in(mine / artifact["path"]), name
    well(elsewhere, *(f"get -q {bare} {path} -o got/{path}" for path in ("base", "params.yaml")))
    got = elsewhere / "got"
    places = ("--params", got / "params.yaml", "--lora", got / "lora", "--gate", got / "gate")
    drawn = drawn_with(tmp_path / "out", *places)
    assert (drawn.lora, drawn.lora_sha256) == ("r2", sha256_of(got / "lora" / WEIGHTS))
    assert rank(elsewhere / "lora") == 2
    well(mine, "exp apply other")
    git(mine, "commit", "-qam", "another adapter")
    git(mine, "push", "-q", "origin", "main")
    well(elsewhere, "update lora.dvc gate.dvc")
    assert rank(elsewhere / "lora") == 3
    assert files_in(elsewhere / "gate") == files_in(mine / "models" / "gate")


def test_the_readme_shares_by_the_lines_that_are_tested_here():
    section = (ROOT / "README.md").read_text().split("\n## Share results\n")[1].split("\n## ")[0]
    given = [re.split(r"  +#| && ", line)[0] for line in section.splitlines() if line.startswith("dvc ")]
    assert len(given) == 11
    assert not [line for line in given if line not in SHARING]
    assert set(re.findall("pip install [a-z-]+", section)) == set(re.findall("pip install [a-z-]+", SHARING))


def test_every_artifact_says_what_it_is():
    for name, artifact in ARTIFACTS.items():
        assert artifact["type"] in ("model", "dataset") and len(artifact["desc"]) > 20 and artifact["labels"], name


@pytest.mark.parametrize("where", ["S3", "Google Cloud", "Azure", "SSH", "shared folder", "HTTP, to read only"])
def test_by_the_documented_lines_no_secret_is_in_what_git_sees(where, tmp_path):
    git(tmp_path, "init", "-q", ".")
    words = {word: f"hidden{number}" for number, word in enumerate(SECRETS)}
    lines = documented(where, **words)
    assert lines
    well(tmp_path, "init -q", *lines, *re.findall(r"`dvc (remote modify store verify true)`", SHARING))
    git(tmp_path, "add", "-A")
    seen = git(tmp_path, "diff", "--cached")
    assert "verify = true" in seen and "hidden" not in seen
    local = tmp_path / ".dvc" / "config.local"
    assert where == "shared folder" or "hidden" in local.read_text()
