"""Downloads by the real clients from a server on this machine, with its faults: archives, bases, classifier weights."""

from __future__ import annotations

import hashlib
import pickle
import resource
import shutil
from pathlib import Path

import medmnist
import numpy as np
import pytest
from conftest import ROOT, medmnist_archive, run_stage, send_hub_client_to, tiny_tree, write_params
from huggingface_hub import constants
from loopback import REVISION, Server

from pathsynth.classifiers.settings import ClassifierSettings
from pathsynth.core.errors import DataError, FetchError, ModelError
from pathsynth.core.io import read_json
from pathsynth.core.params import read_yaml
from pathsynth.data.archives import SPLITS
from pathsynth.data.prepared import open_prepared
from pathsynth.diffusion.base import load_base, locate_base
from pathsynth.diffusion.settings import BaseModelSettings
from pathsynth.sources.download import fetch_archive

ARCHIVE = "/records/1/files/breastmnist.npz"
REPO = "stable-diffusion-v1-5/stable-diffusion-v1-5"

# MedMNIST archives


@pytest.fixture
def archive(server: Server, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """BreastMNIST as the server sends it, with its address and checksum in medmnist's table."""
    content = medmnist_archive("breastmnist", per_label=20)
    monkeypatch.setitem(medmnist.INFO["breastmnist"], "url", server.add_file(ARCHIVE, content) + "?download=1")
    monkeypatch.setitem(medmnist.INFO["breastmnist"], "MD5", hashlib.md5(content).hexdigest())
    return content


def _fetch_error(root: Path) -> str:
    with pytest.raises(FetchError) as caught:
        fetch_archive("breastmnist", 28, root)
    message = str(caught.value)
    assert "\n" not in message and message.startswith(str(root / "breastmnist.npz"))
    return message


def test_archive_is_shared_with_medmnist_and_downloaded_once(server: Server, archive: bytes, tmp_path: Path):
    path = fetch_archive("breastmnist", 28, tmp_path / "ours")
    assert path.read_bytes() == archive and path.name == "breastmnist.npz"
    assert not list((tmp_path / "ours").glob("*.part"))
    (tmp_path / "theirs").mkdir()
    medmnist.BreastMNIST(split="val", root=str(tmp_path / "theirs"), download=True)
    requests = len(server.requests)
    assert fetch_archive("breastmnist", 28, tmp_path / "ours") == path
    assert medmnist.BreastMNIST(split="val", root=str(tmp_path / "ours"), download=True).imgs.shape == (40, 28, 28)
    assert fetch_archive("breastmnist", 28, tmp_path / "theirs").read_bytes() == archive
    assert len(server.requests) == requests


def test_larger_size_has_its_own_name_and_checksum(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    content = medmnist_archive("pathmnist", side=64)
    monkeypatch.setitem(medmnist.INFO["pathmnist"], "url_64", server.add_file("/p_64.npz", content))
    monkeypatch.setitem(medmnist.INFO["pathmnist"], "MD5_64", hashlib.md5(content).hexdigest())
    assert fetch_archive("pathmnist", 64, tmp_path) == tmp_path / "pathmnist_64.npz"


def test_benchmark_pathmnist64_prepares_a_selection_of_the_downloaded_archive(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The committed files, with fewer images per tissue, as the real archive is not here."""
    content = medmnist_archive("pathmnist", side=64, per_label=7)
    monkeypatch.setitem(medmnist.INFO["pathmnist"], "url_64", server.add_file("/p_64.npz", content, redirect=True))
    monkeypatch.setitem(medmnist.INFO["pathmnist"], "MD5_64", hashlib.md5(content).hexdigest())
    tree, name = tiny_tree(), "pathmnist64"
    benchmark = read_yaml(ROOT / "configs" / "benchmarks" / f"{name}.yaml")
    (dataset,) = benchmark["dataset"]
    assert [dataset[f"{split}_per_tissue"] for split in SPLITS] == [250, 60, 60]
    dataset |= {"root": str(tmp_path / "archives"), "train_per_tissue": 5, "val_per_tissue": 3, "test_per_tissue": 2}
    benchmark["prompts"] = read_yaml(ROOT / "configs" / "prompts" / f"{name}.yaml")
    params = write_params(tmp_path / "params.yaml", tree | {"benchmark": name, "benchmarks": {name: benchmark}})
    for times in (1, 2):
        result = run_stage("prepare", "--params", params, "--out", tmp_path / str(times))
        assert result.exit_code == 0, result.output
        assert "pathmnist64: train 45 of 63, val 27 of 63, test 18 of 63 images of 64 px" in result.output
    assert len([name for method, name, _ in server.requests if (method, name) == ("GET", "/cdn/p_64.npz")]) == 1
    contents = [{path.name: path.read_bytes() for path in (tmp_path / folder).iterdir()} for folder in ("1", "2")]
    assert contents[0] == contents[1]
    prepared, card = open_prepared(tmp_path / "1"), read_json(tmp_path / "1" / "card.json")
    assert prepared.images("train").shape == (45, 64, 64, 3) and set(card["splits"]["val"]["per_tissue"].values()) == {3}
    assert [card["splits"][split]["available"] for split in SPLITS] == [63, 63, 63]
    (tmp_path / "archive.npz").write_bytes(content)
    with np.load(tmp_path / "archive.npz") as archive:
        whole = {image.tobytes() for image in archive["test_images"]}
    assert len({image.tobytes() for image in prepared.images("test")} & whole) == 18


def test_damaged_archive_is_replaced_only_by_an_intact_one(
    server: Server, archive: bytes, tmp_path: Path, capsys: pytest.CaptureFixture
):
    path = tmp_path / "breastmnist.npz"
    path.write_bytes(b"precious")
    server.fail(ARCHIVE, times=None)
    assert "status 500" in _fetch_error(tmp_path)
    assert path.read_bytes() == b"precious"
    server.heal()
    assert fetch_archive("breastmnist", 28, tmp_path).read_bytes() == archive
    assert f"{path}: is damaged (MD5 " in capsys.readouterr().err


def test_interrupted_transfer_resumes_at_once_and_in_the_next_run(server: Server, archive: bytes, tmp_path: Path):
    server.cut(ARCHIVE, after_bytes=5500)
    assert fetch_archive("breastmnist", 28, tmp_path / "once").read_bytes() == archive
    assert [ranges for _, _, ranges in server.requests] == [None, "bytes=5000-"]
    server.cut(ARCHIVE, after_bytes=5500)
    server.cut(ARCHIVE, after_bytes=10, times=None)
    assert "no connection" in _fetch_error(tmp_path)
    assert (tmp_path / ".breastmnist.npz.part").stat().st_size == 5000
    server.heal()
    server.requests.clear()
    assert fetch_archive("breastmnist", 28, tmp_path).read_bytes() == archive
    assert [ranges for _, _, ranges in server.requests] == ["bytes=5000-"]


@pytest.mark.parametrize("left", ["half", "whole", "longer", "of another file", "half, for a server without ranges"])
def test_part_of_an_earlier_transfer_is_checked_by_checksum(left: str, server: Server, archive: bytes, tmp_path: Path):
    contents = {"whole": archive, "longer": archive + b"more", "of another file": b"x" * 5000}
    (tmp_path / ".breastmnist.npz.part").write_bytes(contents.get(left, archive[:5000]))
    if "without ranges" in left:
        server.ignore_ranges(ARCHIVE)
    assert fetch_archive("breastmnist", 28, tmp_path).read_bytes() == archive


def test_wrong_checksum_is_one_line_error_and_leaves_no_file(server: Server, archive: bytes, tmp_path: Path):
    server.corrupt(ARCHIVE, times=None)
    message = _fetch_error(tmp_path)
    assert "has MD5 " in message and "but medmnist expects" in message and "or download http://" in message
    assert not list(tmp_path.glob("*.npz")) and not list(tmp_path.glob(".*.part"))


def test_unreachable_archive_is_one_line_error_with_the_remedy(
    server: Server, archive: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    server.fail(ARCHIVE, status=404, times=None)
    assert "status 404" in _fetch_error(tmp_path)
    with Server() as ended:
        monkeypatch.setitem(medmnist.INFO["breastmnist"], "url", f"{ended.url}{ARCHIVE}")
    message = _fetch_error(tmp_path)
    assert "no connection" in message and f"or download {ended.url}{ARCHIVE} by hand (MD5 " in message
    requests = len(server.requests)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in _fetch_error(tmp_path)
    assert len(server.requests) == requests


def test_full_disk_keeps_the_part(server: Server, archive: bytes, tmp_path: Path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        assert "File too large" in _fetch_error(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert 0 < (tmp_path / ".breastmnist.npz.part").stat().st_size <= 20_000
    assert fetch_archive("breastmnist", 28, tmp_path).read_bytes() == archive


def test_read_only_folder_serves_an_intact_archive_and_else_is_one_line_error(archive: bytes, tmp_path: Path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(DataError, match=r"breastmnist\.npz: could not be written: (Not a directory|File exists)$"):
        fetch_archive("breastmnist", 28, tmp_path / "file")
    (tmp_path / "breastmnist.npz").write_bytes(archive)
    monkeypatch.setattr(Path, "mkdir", lambda *_, **__: (_ for _ in ()).throw(OSError("read-only")))
    assert fetch_archive("breastmnist", 28, tmp_path) == tmp_path / "breastmnist.npz"
    assert not list(tmp_path.glob(".*.lock"))


# Base models


def _hub(**changes) -> BaseModelSettings:
    return BaseModelSettings(**{"pretrained_model_name_or_path": REPO, "revision": REVISION, "variant": None, **changes})


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_only_the_wanted_files_of_a_base_are_downloaded(server: Server, sd15_base: Path, variant: str | None):
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


def test_interrupted_base_is_complete_after_another_try_and_then_needs_no_network(
    server: Server, sd15_base: Path, monkeypatch: pytest.MonkeyPatch
):
    server.add_repo(REPO, sd15_base)
    server.cut("unet/diffusion_pytorch_model.safetensors", after_bytes=500, times=None)
    with pytest.raises(FetchError, match=rf"^{REPO} at {REVISION}: no connection"):
        locate_base(_hub(), Path("unused"))
    server.heal()
    folder = locate_base(_hub(), Path("unused"))
    load_base(folder, "cpu")
    server.requests.clear()
    assert locate_base(_hub(), Path("unused")) == folder
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert locate_base(_hub(), Path("unused")) == folder
    assert not server.requests


def _disconnect(_: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with Server() as ended:
        send_hub_client_to(ended.url, monkeypatch)


@pytest.mark.parametrize(
    ("changes", "spoil", "problem"),
    [
        ({"pretrained_model_name_or_path": "nobody/nothing"}, None, "check its name, or run `hf auth login`"),
        ({"pretrained_model_name_or_path": "own/a--b"}, None, "own/a--b"),
        ({"revision": "f" * 40}, None, "has no such revision"),
        ({}, lambda server, _: server.gate(REPO), "is gated: accept its terms on its page and run `hf auth login`"),
        ({}, lambda server, _: server.fail("/api/models", times=None), "status 500"),
        ({}, lambda _, monkeypatch: monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True), "HF_HUB_OFFLINE"),
        ({}, _disconnect, "check the network"),
    ],
    ids=["repository", "name", "revision", "gated", "broken", "offline", "unreachable"],
)
def test_unavailable_base_is_one_line_error_with_the_remedy(
    server: Server, sd15_base: Path, monkeypatch: pytest.MonkeyPatch, changes: dict, spoil, problem: str
):
    server.add_repo(REPO, sd15_base)
    if spoil:
        spoil(server, monkeypatch)
    base = _hub(**changes)
    with pytest.raises(FetchError) as caught:
        locate_base(base, Path("unused"))
    message = str(caught.value)
    assert message.startswith(f"{base.pretrained_model_name_or_path} at {base.revision}: ") and problem in message
    assert "\n" not in message


def _log_in(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", False)
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    server.fail("/api/models", status=401, times=None)


@pytest.mark.parametrize(("spoil", "problem"), [
    (_log_in, "the token in HF_TOKEN, or of `hf auth login`, is not valid: renew it, or unset it for a public repository"),
    (lambda server, _: server.fail("/api/models", status=403, times=None), "status 403; it forbids the access"),
    (lambda server, _: server.fail("/api/models", status=407, times=None), "HTTPS_PROXY=http://USER:PASSWORD@HOST:PORT"),
    (lambda server, _: server.fail("/api/models", status=429, times=None), "too many requests: try again later"),
    (lambda server, _: server.add_file(f"/api/models/{REPO}/tree/{REVISION}", b"<html>"), "as from a login page"),
    (lambda _, monkeypatch: monkeypatch.setenv("HTTP_PROXY", "nowhere:80"), "HTTPS_PROXY"),
    (lambda _, monkeypatch: monkeypatch.setenv("HTTP_PROXY", "http://u:p#s@nowhere:80"), "write special characters"),
    (lambda _, monkeypatch: monkeypatch.setenv("HTTP_PROXY", "socks5://nowhere:80"), "HTTPS_PROXY"),
    (lambda _, monkeypatch: monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1"), "check the network and HTTPS_PROXY"),
], ids=["token", "forbidden", "login", "rate limit", "page", "bad proxy", "password", "socks", "proxy down"])  # fmt: skip
def test_answer_of_the_network_is_explained(server: Server, sd15_base: Path, monkeypatch: pytest.MonkeyPatch, spoil, problem):
    import huggingface_hub as hub

    server.add_repo(REPO, sd15_base)
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setenv("no_proxy", "")
    spoil(server, monkeypatch)
    hub.close_session()
    with pytest.raises(FetchError) as caught:
        locate_base(_hub(), Path("unused"))
    assert problem in str(caught.value) and "\n" not in str(caught.value)


def test_base_of_another_family_is_refused_before_its_weights_are_downloaded(server: Server, sd15_base: Path, tmp_path: Path):
    import json

    inpainting = shutil.copytree(sd15_base, tmp_path / "inpainting")
    config = inpainting / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"in_channels": 9}))
    server.add_repo(REPO, inpainting)
    with pytest.raises(ModelError, match="reads 9 channels in its UNet, but has latents of 4"):
        locate_base(_hub(), Path("unused"))
    assert not [path for _, path, _ in server.requests if path.endswith(".safetensors")]


def test_missing_variant_and_pickled_weights_are_one_line_errors(server: Server, sd15_base: Path, tmp_path: Path):
    server.add_repo(REPO, sd15_base)
    folder = locate_base(_hub(variant="int4"), Path("unused"))
    with pytest.raises(ModelError, match=r"lacks vae/diffusion_pytorch_model\.int4\.safetensors, .*; base\.variant names"):
        load_base(folder, "cpu", "int4")
    shutil.copytree(sd15_base, tmp_path / "base")
    (tmp_path / "base" / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"lacks unet/diffusion_pytorch_model\.safetensors"):
        load_base(tmp_path / "base", "cpu")


# Weights of classifiers

SHUFFLENET = "shufflenet_v2_x0_5"


def _classifier(**changes) -> ClassifierSettings:
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


def test_imagenet_weights_are_downloaded_once_and_get_a_new_head(torchvision_server: Server, imagenet):
    import torch

    from pathsynth.classifiers.model import build_card, build_network, load_pretrained_weights

    settings = _classifier(weights="imagenet")
    network = build_network(build_card(settings, ["a", "b"]), load_pretrained_weights(settings, Path()))
    assert network.fc.out_features == 2
    assert torch.equal(network.state_dict()["conv1.0.weight"], imagenet[1]["conv1.0.weight"])
    requests = len(torchvision_server.requests)
    load_pretrained_weights(settings, Path())
    assert len(torchvision_server.requests) == requests, "a second call uses torch's cache"


@pytest.mark.parametrize("fault", ["corrupt", "fail", "cut"])
def test_failed_download_of_imagenet_weights_is_one_line_error(fault: str, torchvision_server: Server):
    from pathsynth.classifiers.model import load_pretrained_weights

    getattr(torchvision_server, fault)("/models/", times=None)
    with pytest.raises(ModelError, match=rf"^weights: of {SHUFFLENET} could not be fetched: ") as caught:
        load_pretrained_weights(_classifier(weights="imagenet"), Path())
    assert "\n" not in str(caught.value) and "name it in weights" in str(caught.value)


def test_weights_are_read_from_a_local_file(imagenet, tmp_path: Path):
    import torch
    from safetensors.torch import save_file

    from pathsynth.classifiers.model import load_pretrained_weights

    path, state = imagenet
    save_file(state, tmp_path / "same.safetensors")
    sha256 = hashlib.sha256((tmp_path / "same.safetensors").read_bytes()).hexdigest()
    for settings in (
        _classifier(weights=str(path)),
        _classifier(weights="same.safetensors", weights_sha256=sha256),
        _classifier(weights="same.safetensors", weights_sha256=sha256[:8]),
        _classifier(weights="same.safetensors"),
    ):
        weights = load_pretrained_weights(settings, tmp_path)
        assert set(weights) == set(state) and all(torch.equal(weights[name], state[name]) for name in state)


def test_unusable_local_weights_are_one_line_errors(imagenet, tmp_path: Path):
    from pathsynth.classifiers.model import build_card, build_network, load_pretrained_weights

    path, _ = imagenet
    shutil.copy(path, tmp_path / "net-00000000.pth")
    (tmp_path / "broken.pth").write_bytes(path.read_bytes()[:1000])
    (tmp_path / "evil.pth").write_bytes(pickle.dumps(print))
    (tmp_path / "text.safetensors").write_text("nothing")
    for name, sha256, problem in (
        ("net-00000000.pth", None, "expected 00000000…: wrong file or incomplete download"),
        ("broken.pth", "1" * 64, "expected 1111"),
        ("broken.pth", None, "holds no weights"),
        ("evil.pth", None, "holds no weights"),
        ("text.safetensors", None, "holds no weights"),
        ("missing.pth", None, "could not be read: No such file or directory"),
    ):
        with pytest.raises((DataError, ModelError), match=problem) as caught:
            load_pretrained_weights(_classifier(weights=name, weights_sha256=sha256), tmp_path)
        assert "\n" not in str(caught.value)
    other = _classifier(architecture="squeezenet1_1")
    with pytest.raises(ModelError, match=r"weights: do not fit squeezenet1_1 with its ImageNet head: "):
        build_network(build_card(other, ["a", "b"]), load_pretrained_weights(_classifier(weights=str(path)), tmp_path))
