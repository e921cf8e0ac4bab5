"""The server of the download tests answers the real clients as the hub and file archives do."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import httpx2
import huggingface_hub as hub
import numpy as np
import pytest
from huggingface_hub import errors
from loopback import REVISION, Server

REPO = "someone/tiny"
WEIGHTS = "unet/weights.safetensors"
CDN = f"/cdn/{REPO}/{REVISION}/{WEIGHTS}"


@pytest.fixture
def served(server: Server, tmp_path: Path) -> Path:
    """The files of a repository on the server."""
    folder = tmp_path / "served"
    (folder / "unet").mkdir(parents=True)
    (folder / "model_index.json").write_text('{"_class_name": "Tiny"}')
    (folder / "notes é.md").write_text("a name that must be quoted")
    (folder / WEIGHTS).write_bytes(np.random.default_rng(0).bytes(50_000))
    server.add_repo(REPO, folder)
    return folder


@pytest.fixture
def snapshot(server: Server, tmp_path: Path):
    """Downloads a repository anonymously with the hub's client, into its own cache."""

    def download(revision: str = REVISION, **options) -> Path:
        options = {"cache_dir": tmp_path / "cache", "endpoint": server.url, "token": False, **options}
        return Path(hub.snapshot_download(REPO, revision=revision, **options))

    return download


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("revision", [REVISION, "main"])
def test_snapshot_is_equal_byte_for_byte(revision: str, server: Server, served: Path, snapshot):
    folder = snapshot(revision)
    assert _contents(folder) == _contents(served) and folder.name == REVISION
    assert ("HEAD", f"/{REPO}/resolve/{REVISION}/{WEIGHTS}", None) in server.requests
    assert [request for request in server.requests if "/cdn/" in request[1]] == [("GET", CDN, None)]


@pytest.mark.parametrize("ranges", [True, False])
def test_cut_download_is_resumed(ranges: bool, server: Server, served: Path, snapshot):
    server.cut(CDN, after_bytes=20_500)
    if not ranges:
        server.ignore_ranges("/cdn/")
    assert _contents(snapshot()) == _contents(served)
    assert [request[2] for request in server.requests if request[1] == CDN] == [None, "bytes=20000-"]


def test_corrupted_download_has_a_flipped_bit(server: Server, served: Path, snapshot):
    server.corrupt(CDN)
    assert (snapshot() / WEIGHTS).read_bytes() != (served / WEIGHTS).read_bytes()


@pytest.mark.parametrize(("token", "status"), [(False, 401), ("hf_of_a_stranger", 403)])
def test_gated_repository_can_be_listed_but_not_read(token, status: int, server: Server, served: Path, snapshot):
    server.gate(REPO)
    with pytest.raises(errors.GatedRepoError) as caught:
        snapshot(token=token)
    assert caught.value.response.status_code == status
    assert ("GET", f"/api/models/{REPO}/tree/{REVISION}", None) in server.requests


def test_transient_errors_are_retried(server: Server, served: Path, snapshot, monkeypatch: pytest.MonkeyPatch):
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    server.fail("/tree/", status=503)
    server.fail("model_index.json", status=500, method="HEAD")
    assert _contents(snapshot()) == _contents(served) and waits == [1]


def test_ended_server_refuses_even_its_open_connections():
    with httpx2.Client(trust_env=False) as client:
        with Server() as server:
            address = server.add_file("/weights.bin", b"0123456789")
            assert client.get(address).content == b"0123456789"
        with pytest.raises(httpx2.ConnectError):
            client.get(address)


@pytest.mark.parametrize(
    ("header", "status", "body"),
    [
        (None, 200, b"0123456789"),
        ("bytes=4-", 206, b"456789"),
        ("bytes=4-5", 206, b"45"),
        ("bytes=8-99", 206, b"89"),
        ("bytes=-3", 206, b"789"),
        ("bytes=10-", 416, b""),
        ("lines=1-", 200, b"0123456789"),
    ],
)
def test_ranges_follow_the_standard(server: Server, header: str | None, status: int, body: bytes):
    address = server.add_file("/weights.bin", b"0123456789")
    answer = httpx2.get(address, headers={"Range": header} if header else {}, trust_env=False)
    assert (answer.status_code, answer.content) == (status, body)
    if status == 206:
        start = b"0123456789".index(body)
        assert answer.headers["Content-Range"] == f"bytes {start}-{start + len(body) - 1}/10"


def test_torch_hub_rejects_damaged_weights_by_the_hash_in_their_name(server: Server, tmp_path: Path):
    import torch

    torch.save({"weight": torch.arange(300.0)}, tmp_path / "weights.pth")
    digest = hashlib.sha256((tmp_path / "weights.pth").read_bytes()).hexdigest()[:8]
    address = server.add_file(f"/models/weights-{digest}.pth", tmp_path / "weights.pth")

    def load():
        options = {"model_dir": str(tmp_path / "hub"), "check_hash": True, "weights_only": True, "progress": False}
        return torch.hub.load_state_dict_from_url(address, **options)

    for fault in (server.cut, server.corrupt):
        fault("/models/")
        with pytest.raises(RuntimeError, match="invalid hash value"):
            load()
    assert torch.equal(load()["weight"], torch.arange(300.0))
