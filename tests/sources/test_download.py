"""What is fetched, by the real clients from a server on this machine: archives, bases, classifier weights; and their faults."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import medmnist
import pytest
from conftest import ROOT, medmnist_archive, send_hub_client_to
from huggingface_hub import constants
from loopback import REVISION, Server

from pathsynth.classifiers.settings import ClassifierSettings
from pathsynth.core.errors import DataError, FetchError, ModelError
from pathsynth.diffusion.base import load_base, locate_base
from pathsynth.diffusion.settings import BaseModelSettings
from pathsynth.sources.download import fetch_archive

ARCHIVE = "/records/1/files/breastmnist.npz"
REPO = "stable-diffusion-v1-5/stable-diffusion-v1-5"


@pytest.fixture
def archive(server: Server, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """BreastMNIST as served; medmnist's table says where and what it is."""
    content = medmnist_archive("breastmnist", per_label=20)
    monkeypatch.setitem(medmnist.INFO["breastmnist"], "url", server.add_file(ARCHIVE, content) + "?download=1")
    monkeypatch.setitem(medmnist.INFO["breastmnist"], "MD5", hashlib.md5(content).hexdigest())
    return content


def _refusal(root: Path) -> str:
    with pytest.raises(FetchError) as caught:
        fetch_archive("breastmnist", 28, root)
    message = str(caught.value)
    assert "\n" not in message and message.startswith(str(root / "breastmnist.npz"))
    return message


def test_an_archive_is_fetched_once_and_medmnist_finds_it(server: Server, archive: bytes, tmp_path: Path):
    path = fetch_archive("breastmnist", 28, tmp_path / "root")
    assert path.read_bytes() == archive and path.name == "breastmnist.npz"
    asked = len(server.requests)
    assert fetch_archive("breastmnist", 28, tmp_path / "root") == path
    data = medmnist.BreastMNIST(split="val", root=str(tmp_path / "root"), download=True)
    assert data.imgs.shape == (40, 28, 28)
    assert len(server.requests) == asked, "neither we nor medmnist fetch what is there"
    assert not list((tmp_path / "root").glob("*.part"))


def test_what_medmnist_has_fetched_is_used_as_it_is(server: Server, archive: bytes, tmp_path: Path):
    medmnist.BreastMNIST(split="val", root=str(tmp_path), download=True)
    asked = len(server.requests)
    assert fetch_archive("breastmnist", 28, tmp_path).read_bytes() == archive
    assert len(server.requests) == asked


def test_a_larger_size_has_its_own_name_and_checksum(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    content = medmnist_archive("pathmnist", side=64)
    monkeypatch.setitem(medmnist.INFO["pathmnist"], "url_64", server.add_file("/p_64.npz", content))
    monkeypatch.setitem(medmnist.INFO["pathmnist"], "MD5_64", hashlib.md5(content).hexdigest())
    assert fetch_archive("pathmnist", 64, tmp_path) == tmp_path / "pathmnist_64.npz"


def test_a_damaged_archive_is_named_and_replaced(archive: bytes, tmp_path: Path, capsys: pytest.CaptureFixture):
    path = tmp_path / "breastmnist.npz"
    path.write_bytes(archive[:-1] + b"x")
    assert fetch_archive("breastmnist", 28, tmp_path).read_bytes() == archive
    assert f"{path}: is damaged, its MD5 is " in capsys.readouterr().err


def test_a_damaged_archive_stays_until_a_whole_one_is_there(server: Server, archive: bytes, tmp_path: Path):
    (tmp_path / "breastmnist.npz").write_bytes(b"precious")
    server.fail(ARCHIVE, times=None)
    assert "the server answered with status 500; try again later, or fetch http://" in _refusal(tmp_path)
    assert (tmp_path / "breastmnist.npz").read_bytes() == b"precious"


def test_a_connection_that_is_cut_goes_on_where_it_was(server: Server, archive: bytes, tmp_path: Path):
    server.cut(ARCHIVE, after_bytes=5500)
    assert fetch_archive("breastmnist", 28, tmp_path).read_bytes() == archive
    assert [ranges for _, _, ranges in server.requests] == [None, "bytes=5000-"]


def test_a_transfer_that_broke_off_goes_on_in_the_next_run(server: Server, archive: bytes, tmp_path: Path):
    server.cut(ARCHIVE, after_bytes=5500)
    server.cut(ARCHIVE, after_bytes=10, times=None)
    assert "no connection: " in _refusal(tmp_path)
    assert (tmp_path / ".breastmnist.npz.part").stat().st_size == 5000
    server.heal()
    server.requests.clear()
    assert fetch_archive("breastmnist", 28, tmp_path).read_bytes() == archive
    assert [ranges for _, _, ranges in server.requests] == ["bytes=5000-"]


def test_a_server_without_ranges_sends_all_again(server: Server, archive: bytes, tmp_path: Path):
    (tmp_path / ".breastmnist.npz.part").write_bytes(archive[:5000])
    server.ignore_ranges(ARCHIVE)
    assert fetch_archive("breastmnist", 28, tmp_path).read_bytes() == archive


@pytest.mark.parametrize("left", ["whole", "longer", "of another file"])
def test_what_an_earlier_transfer_left_is_trusted_only_by_its_checksum(left: str, archive: bytes, tmp_path: Path):
    contents = {"whole": archive, "longer": archive + b"more", "of another file": b"x" * 5000}
    (tmp_path / ".breastmnist.npz.part").write_bytes(contents[left])
    assert fetch_archive("breastmnist", 28, tmp_path).read_bytes() == archive


def test_a_wrong_checksum_is_told_and_nothing_is_put_there(server: Server, archive: bytes, tmp_path: Path):
    server.corrupt(ARCHIVE, times=None)
    message = _refusal(tmp_path)
    assert "has MD5 " in message and "as medmnist says; or fetch http://" in message and "by hand" in message
    assert not list(tmp_path.glob("*.npz")) and not list(tmp_path.glob(".*.part"))


def test_an_archive_that_the_server_has_not(server: Server, archive: bytes, tmp_path: Path):
    server.fail(ARCHIVE, status=404, times=None)
    assert "the server answered with status 404; check the address, or fetch http://" in _refusal(tmp_path)


def test_no_network_is_one_line_with_the_remedy(archive: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with Server() as ended:
        monkeypatch.setitem(medmnist.INFO["breastmnist"], "url", f"{ended.url}{ARCHIVE}")
    message = _refusal(tmp_path)
    assert "no connection: " in message and f"or fetch {ended.url}{ARCHIVE} by hand (MD5 " in message


def test_offline_mode_is_respected(server: Server, archive: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE forbids fetching it: unset it for one run, or fetch http://" in _refusal(tmp_path)
    assert not server.requests


def test_a_full_disk_keeps_what_has_come(server: Server, archive: bytes, tmp_path: Path):
    script = f"""
import resource, sys
import medmnist
from pathlib import Path
from pathsynth.errors import FetchError
from pathsynth.fetching import fetch_archive
from huggingface_hub import constants
constants.DOWNLOAD_CHUNK_SIZE = 1000
medmnist.INFO["breastmnist"] |= {{"url": {server.url + ARCHIVE!r}, "MD5": {hashlib.md5(archive).hexdigest()!r}}}
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
try:
    fetch_archive("breastmnist", 28, Path({str(tmp_path)!r}))
except FetchError as error:
    sys.exit(str(error))
"""
    environment = os.environ | {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True)
    problem = "File too large: make room or choose another folder and start again; what was fetched is kept"
    assert (done.returncode, done.stderr) == (1, f"{tmp_path / 'breastmnist.npz'}: {problem}\n")
    assert 0 < (tmp_path / ".breastmnist.npz.part").stat().st_size <= 20000
    assert fetch_archive("breastmnist", 28, tmp_path).read_bytes() == archive


def test_a_whole_archive_may_lie_where_nothing_can_be_written(archive: bytes, tmp_path: Path, monkeypatch):
    (tmp_path / "breastmnist.npz").write_bytes(archive)
    monkeypatch.setattr(Path, "mkdir", lambda *_, **__: (_ for _ in ()).throw(OSError("read-only")))
    assert fetch_archive("breastmnist", 28, tmp_path) == tmp_path / "breastmnist.npz"
    assert len(list(tmp_path.iterdir())) <= 2, "no lock is left"


def test_a_folder_that_cannot_be_written_is_one_line(archive: bytes, tmp_path: Path):
    from pathsynth.core.errors import DataError

    (tmp_path / "file").write_text("no folder")
    with pytest.raises(DataError, match=r"breastmnist\.npz: could not be written: (Not a directory|File exists)$"):
        fetch_archive("breastmnist", 28, tmp_path / "file")


def _hub(**changes) -> BaseModelSettings:
    return BaseModelSettings(**{"pretrained_model_name_or_path": REPO, "revision": REVISION, "variant": None, **changes})


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_a_base_comes_from_the_hub_with_nothing_else(server: Server, sd15_base: Path, variant: str | None):
    import torch

    server.add_repo(REPO, sd15_base)
    folder = locate_base(_hub(variant=variant), Path("unused"))
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    suffix = f".{variant}.safetensors" if variant else ".safetensors"
    weights = {name for name in names if not name.endswith((".json", ".txt"))}
    assert weights == {
        f"{part}/{name}{suffix}"
        for part, name in (("unet", "diffusion_pytorch_model"), ("vae", "diffusion_pytorch_model"), ("text_encoder", "model"))
    }
    fetched, local = load_base(folder, "cpu", variant), load_base(sd15_base, "cpu", variant)
    assert fetched.safety_checker is None and fetched.unet.dtype == torch.float32
    for one, other in zip(fetched.unet.parameters(), local.unet.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_base_in_the_cache_needs_no_network(server: Server, sd15_base: Path, monkeypatch: pytest.MonkeyPatch):
    server.add_repo(REPO, sd15_base)
    folder = locate_base(_hub(), Path("unused"))
    server.requests.clear()
    assert locate_base(_hub(), Path("unused")) == folder and not server.requests
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert locate_base(_hub(), Path("unused")) == folder and not server.requests


def test_a_base_that_breaks_off_is_whole_after_another_try(server: Server, sd15_base: Path):
    server.add_repo(REPO, sd15_base)
    server.cut("unet/diffusion_pytorch_model.safetensors", after_bytes=500, times=None)
    with pytest.raises(FetchError, match=rf"^{REPO} at {REVISION}: no connection: "):
        locate_base(_hub(), Path("unused"))
    server.heal()
    load_base(locate_base(_hub(), Path("unused")), "cpu")


def _no_repository(server: Server, _) -> BaseModelSettings:
    return _hub(pretrained_model_name_or_path="nobody/nothing")


def _impossible_name(server: Server, _) -> BaseModelSettings:
    return _hub(pretrained_model_name_or_path="own/a--b")


def _no_revision(server: Server, _) -> BaseModelSettings:
    return _hub(revision="f" * 40)


def _gated(server: Server, _) -> BaseModelSettings:
    server.gate(REPO)
    return _hub()


def _broken(server: Server, _) -> BaseModelSettings:
    server.fail("/api/models", times=None)
    return _hub()


def _offline(server: Server, monkeypatch: pytest.MonkeyPatch) -> BaseModelSettings:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return _hub()


def _unreachable(server: Server, monkeypatch: pytest.MonkeyPatch) -> BaseModelSettings:
    with Server() as ended:
        send_hub_client_to(ended.url, monkeypatch)
    return _hub()


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (_no_repository, "is not on the hub, or private: check its name, or run `hf auth login`"),
        (_no_revision, "has no such revision"),
        (_impossible_name, "is no name that the hub allows: "),
        (_gated, "is gated: accept its terms on its page and run `hf auth login`"),
        (_broken, "the server answered with status 500; try again later"),
        (_offline, "is not on this machine, and HF_HUB_OFFLINE forbids fetching it: unset it for one run"),
        (_unreachable, "is not on this machine, and the server cannot be reached: check the network"),
    ],
)
def test_a_base_that_is_not_to_be_had_is_one_line(server: Server, sd15_base: Path, monkeypatch, spoil, problem: str):
    server.add_repo(REPO, sd15_base)
    wanted = spoil(server, monkeypatch)
    with pytest.raises(FetchError) as caught:
        locate_base(wanted, Path("unused"))
    message = str(caught.value)
    assert message.startswith(f"{wanted.pretrained_model_name_or_path} at {wanted.revision}: {problem}") and "\n" not in message
    assert spoil is _impossible_name or message.endswith("or name a local folder, with base.revision: null")


def test_a_variant_that_the_base_has_not_is_named(server: Server, sd15_base: Path):
    server.add_repo(REPO, sd15_base)
    folder = locate_base(_hub(variant="int4"), Path("unused"))
    with pytest.raises(ModelError, match=r"lacks vae/diffusion_pytorch_model\.int4\.safetensors, .*; base\.variant names"):
        load_base(folder, "cpu", "int4")


def test_a_base_of_pickles_is_not_loaded(sd15_base: Path, tmp_path: Path):
    import shutil

    shutil.copytree(sd15_base, tmp_path / "base")
    (tmp_path / "base" / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"lacks unet/diffusion_pytorch_model\.safetensors"):
        load_base(tmp_path / "base", "cpu")


SHUFFLENET = "shufflenet_v2_x0_5"


def _classifier(**changes) -> ClassifierSettings:
    from conftest import tiny_tree

    return ClassifierSettings.model_validate(
        tiny_tree()["benchmarks"]["tiny"]["classifiers"]["judge"] | {"architecture": SHUFFLENET} | changes
    )


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory) -> tuple[Path, dict]:
    """Random weights with ImageNet's head in torchvision's file format, under a name that ends in their checksum."""
    import torch
    from torchvision import models

    state = models.get_model(SHUFFLENET).state_dict()
    path = tmp_path_factory.mktemp("weights") / "weights.pth"
    torch.save(state, path)
    return path.rename(path.with_name(f"net-{hashlib.sha256(path.read_bytes()).hexdigest()[:10]}.pth")), state


@pytest.fixture
def torchvision_server(server: Server, imagenet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    """torchvision's own loader, sent to the server instead of torchvision's."""
    from torchvision.models import _api

    path, _ = imagenet
    real, address = _api.load_state_dict_from_url, server.add_file(f"/models/{path.name}", path)
    monkeypatch.setattr(_api, "load_state_dict_from_url", lambda _, **options: real(address, **options))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return server


def test_imagenet_weights_come_through_torchvision_and_the_head_is_new(torchvision_server: Server, imagenet):
    import torch

    from pathsynth.classifiers.model import build_network, card_of, pretrained

    settings = _classifier(weights="imagenet")
    network = build_network(card_of(settings, ["a", "b"]), pretrained(settings, Path()))
    assert network.fc.out_features == 2
    assert torch.equal(network.state_dict()["conv1.0.weight"], imagenet[1]["conv1.0.weight"])
    asked = len(torchvision_server.requests)
    pretrained(settings, Path())
    assert len(torchvision_server.requests) == asked, "they are in torch's cache"


@pytest.mark.parametrize("fault", ["corrupt", "fail", "cut"])
def test_imagenet_weights_that_do_not_come_whole_are_one_line(fault: str, torchvision_server: Server):
    from pathsynth.classifiers.model import pretrained

    getattr(torchvision_server, fault)("/models/", times=None)
    with pytest.raises(ModelError, match=rf"^weights: of {SHUFFLENET} could not be fetched: ") as caught:
        pretrained(_classifier(weights="imagenet"), Path())
    assert "\n" not in str(caught.value) and "name it in weights" in str(caught.value)


def test_weights_from_a_local_file(imagenet, tmp_path: Path):
    import torch
    from safetensors.torch import save_file

    from pathsynth.classifiers.model import pretrained

    path, state = imagenet
    save_file(state, tmp_path / "same.safetensors")
    sha256 = hashlib.sha256((tmp_path / "same.safetensors").read_bytes()).hexdigest()
    for settings in (
        _classifier(weights=str(path)),
        _classifier(weights="same.safetensors", weights_sha256=sha256),
        _classifier(weights="same.safetensors", weights_sha256=sha256[:8]),
        _classifier(weights="same.safetensors"),
    ):
        weights = pretrained(settings, tmp_path)
        assert set(weights) == set(state) and all(torch.equal(weights[name], state[name]) for name in state)


def test_local_weights_that_cannot_be_used_are_one_line(imagenet, tmp_path: Path):
    import pickle
    import shutil

    from pathsynth.classifiers.model import build_network, card_of, pretrained

    path, _ = imagenet
    shutil.copy(path, tmp_path / "net-00000000.pth")
    (tmp_path / "broken.pth").write_bytes(path.read_bytes()[:1000])
    (tmp_path / "evil.pth").write_bytes(pickle.dumps(print))
    (tmp_path / "text.safetensors").write_text("nothing")
    for name, sha256, problem in (
        ("net-00000000.pth", None, "does not begin with 00000000: another file, or only a part of it"),
        ("broken.pth", "1" * 64, "does not begin with 1111"),
        ("broken.pth", None, "holds no weights"),
        ("evil.pth", None, "holds no weights"),
        ("text.safetensors", None, "holds no weights"),
        ("missing.pth", None, "could not be read: No such file or directory"),
    ):
        with pytest.raises((DataError, ModelError), match=problem) as caught:
            pretrained(_classifier(weights=name, weights_sha256=sha256), tmp_path)
        assert "\n" not in str(caught.value)
    other = _classifier(architecture="squeezenet1_1")
    with pytest.raises(ModelError, match=r"weights: are not of squeezenet1_1 with ImageNet's head: "):
        build_network(card_of(other, ["a", "b"]), pretrained(_classifier(weights=str(path)), tmp_path))
