"""The server of the download tests, shown by the real clients: what comes back, what they ask for, what they raise."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import httpx2
import huggingface_hub as hub
import numpy as np
import pytest
from huggingface_hub import constants, errors, file_download
from loopback import REVISION, Server

REPO = "someone/tiny"
WEIGHTS = "unet/weights.safetensors"
CDN = f"/cdn/{REPO}/{REVISION}/{WEIGHTS}"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A server with one repository, a client that is online and free of proxies, and waits that take no time."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "served"
    (folder / "unet").mkdir(parents=True)
    (folder / "model_index.json").write_text('{"_class_name": "Tiny"}')
    (folder / "notes é.md").write_text("not asked for")
    (folder / WEIGHTS).write_bytes(rng.bytes(50_000))
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1,localhost")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub.close_session()
    with Server() as running:
        running.add_repo(REPO, folder)
        yield running


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that a client wanted to wait between its attempts; it does not."""
    asked: list[float] = []
    monkeypatch.setattr(time, "sleep", asked.append)
    return asked


@pytest.fixture
def snapshot(server: Server, tmp_path: Path):
    """Calls the hub's client as anyone, with a cache of its own; returns the folder."""

    def download(repo_id: str = REPO, revision: str = REVISION, **options) -> Path:
        options = {"cache_dir": tmp_path / "cache", "endpoint": server.url, "token": False, **options}
        return Path(hub.snapshot_download(repo_id, revision=revision, **options))

    return download


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _closed_address() -> str:
    """An address of this computer where nobody listens any more."""
    with Server() as ended:
        return ended.url


@pytest.mark.parametrize("revision", [REVISION, "main"])
def test_a_snapshot_comes_back_byte_for_byte(server: Server, snapshot, tmp_path: Path, revision: str):
    folder = snapshot(revision=revision)
    assert _contents(folder) == _contents(tmp_path / "served")
    assert folder.name == REVISION
    assert ("HEAD", f"/{REPO}/resolve/{REVISION}/{WEIGHTS}", None) in server.requests
    assert [request for request in server.requests if "/cdn/" in request[1]] == [("GET", CDN, None)]


def test_only_what_the_patterns_allow_is_fetched(server: Server, snapshot):
    assert list(_contents(snapshot(allow_patterns=["*.json"]))) == ["model_index.json"]
    assert not [request for request in server.requests if "weights" in request[1]]


def test_a_second_snapshot_asks_only_where_main_is(server: Server, snapshot):
    snapshot()
    server.requests.clear()
    snapshot()
    assert server.requests == []
    snapshot(revision="main")
    assert server.requests == [("GET", f"/api/models/{REPO}/revision/main", None)]


def test_one_file_and_what_is_known_of_it(server: Server, tmp_path: Path):
    address = hub.hf_hub_url(REPO, WEIGHTS, endpoint=server.url)
    known = hub.get_hf_file_metadata(address, token=False)
    assert (known.commit_hash, known.size, known.location) == (REVISION, 50_000, server.cdn_url + CDN)
    assert known.etag == hashlib.sha256((tmp_path / "served" / WEIGHTS).read_bytes()).hexdigest()
    info = hub.HfApi(server.url, token=False).model_info(REPO)
    assert (info.sha, len(info.siblings)) == (REVISION, 3)


@pytest.mark.parametrize("ranges", [True, False])
def test_a_download_cut_half_way_is_taken_up_again(server: Server, snapshot, tmp_path: Path, waits, monkeypatch, ranges: bool):
    # The client loses what it holds of a chunk, and its chunks are of 10 MB
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    server.cut(CDN, after_bytes=20_500)
    if not ranges:
        server.ignore_ranges("/cdn/")
    assert _contents(snapshot()) == _contents(tmp_path / "served")
    asked = [request[2] for request in server.requests if request[1] == CDN]
    assert asked == [None, "bytes=20000-"]
    assert waits == [1]


def test_a_download_that_is_cut_every_time_is_given_up(server: Server, snapshot, tmp_path: Path, waits):
    server.cut(CDN, times=None)
    with pytest.raises(httpx2.RemoteProtocolError):
        snapshot()
    assert waits == [1] * 5
    assert not list(tmp_path.rglob("*.incomplete"))


def test_the_client_does_not_notice_a_flipped_bit(server: Server, snapshot, tmp_path: Path):
    server.corrupt(CDN)
    assert (snapshot() / WEIGHTS).read_bytes() != (tmp_path / "served" / WEIGHTS).read_bytes()


@pytest.mark.parametrize("revision", [REVISION, "main"])
def test_a_repository_that_is_missing(snapshot, revision: str):
    with pytest.raises(errors.RepositoryNotFoundError, match="Invalid username or password") as caught:
        snapshot("someone/else", revision)
    assert caught.value.response.status_code == 401


@pytest.mark.parametrize("revision", ["f" * 40, "v2", "refs/pr/1"])
def test_a_revision_that_is_missing(snapshot, revision: str):
    with pytest.raises(errors.RevisionNotFoundError, match=f"Invalid rev id: {revision}"):
        snapshot(revision=revision)


def test_a_file_that_is_missing(server: Server, tmp_path: Path):
    with pytest.raises(errors.RemoteEntryNotFoundError):
        hub.hf_hub_download(REPO, "vae/config.json", cache_dir=tmp_path / "cache", endpoint=server.url, token=False)


@pytest.mark.parametrize(("token", "status"), [(False, 401), ("hf_of_a_stranger", 403)])
def test_a_gated_repository_can_be_listed_but_not_read(server: Server, snapshot, token: str | bool, status: int):
    server.gate(REPO)
    with pytest.raises(errors.GatedRepoError) as caught:
        snapshot(token=token)
    assert caught.value.response.status_code == status
    assert ("GET", f"/api/models/{REPO}/tree/{REVISION}", None) in server.requests


def test_an_error_in_place_of_a_file(server: Server, snapshot):
    server.fail(CDN, status=500)
    with pytest.raises(errors.HfHubHTTPError) as caught:
        snapshot()
    assert caught.value.response.status_code == 500


def test_an_error_in_place_of_the_listing_is_tried_five_times_more(server: Server, snapshot, waits):
    server.fail("/tree/", status=503, times=None)
    with pytest.raises(errors.LocalEntryNotFoundError) as caught:
        snapshot()
    assert isinstance(caught.value.__cause__, errors.HfHubHTTPError)
    assert waits == [1, 2, 4, 8, 8]


def test_an_error_that_passes(server: Server, snapshot, tmp_path: Path, waits):
    server.fail("/tree/", status=503)
    server.fail("model_index.json", status=500, method="HEAD")
    assert _contents(snapshot()) == _contents(tmp_path / "served")
    assert waits == [1]


@pytest.mark.parametrize(("revision", "seconds"), [(REVISION, [1, 2, 4, 8, 8]), ("main", [])])
def test_without_a_network(snapshot, waits, revision: str, seconds: list[int]):
    with pytest.raises(errors.LocalEntryNotFoundError) as caught:
        snapshot(revision=revision, endpoint=_closed_address())
    assert isinstance(caught.value.__cause__, httpx2.ConnectError)
    assert waits == seconds


def test_without_a_network_the_cache_is_enough(snapshot):
    folder = snapshot(revision="main")
    for revision in (REVISION, "main"):
        assert snapshot(revision=revision, endpoint=_closed_address()) == folder


def test_a_server_that_has_ended_refuses_even_the_clients_it_had():
    with httpx2.Client(trust_env=False) as client:
        with Server() as server:
            address = server.add_file("/weights.bin", b"0123456789")
            assert client.get(address).content == b"0123456789"
        with pytest.raises(httpx2.ConnectError):
            client.get(address)


def test_offline_nothing_is_asked(server: Server, snapshot, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(errors.LocalEntryNotFoundError) as caught:
        snapshot()
    assert isinstance(caught.value.__cause__, errors.OfflineModeIsEnabled)
    assert server.requests == []


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
def test_parts_of_a_file(server: Server, header: str | None, status: int, body: bytes):
    address = server.add_file("/weights.bin", b"0123456789")
    answer = httpx2.get(address, headers={"Range": header} if header else {}, trust_env=False)
    assert (answer.status_code, answer.content) == (status, body)
    if status == 206:
        start = b"0123456789".index(body)
        assert answer.headers["Content-Range"] == f"bytes {start}-{start + len(body) - 1}/10"


def test_http_get_follows_the_redirect_of_an_archive(server: Server, tmp_path: Path):
    address = server.add_file("/records/1/files/set.npz", b"0123456789", redirect=True)
    with (tmp_path / "set.npz").open("wb") as file:
        file_download.http_get(f"{address}?download=1", file)
    assert (tmp_path / "set.npz").read_bytes() == b"0123456789"
    assert [request[1] for request in server.requests] == ["/records/1/files/set.npz", "/cdn/records/1/files/set.npz"]


@pytest.fixture
def breast(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Has medmnist fetch its smallest set from the server, where a set of three images a split stands for it."""
    import medmnist

    arrays = {f"{split}_images": np.full((3, 28, 28), 7, np.uint8) for split in ("train", "val", "test")}
    arrays |= {f"{split}_labels": np.ones((3, 1), np.uint8) for split in ("train", "val", "test")}
    np.savez(tmp_path / "set.npz", **arrays)
    address = server.add_file("/records/1/files/breastmnist.npz", tmp_path / "set.npz")
    info = medmnist.INFO["breastmnist"]
    monkeypatch.setitem(info, "url", f"{address}?download=1")
    monkeypatch.setitem(info, "MD5", hashlib.md5((tmp_path / "set.npz").read_bytes()).hexdigest())
    (tmp_path / "root").mkdir()
    return lambda: medmnist.BreastMNIST("train", download=True, root=tmp_path / "root")


def test_medmnist_fetches_its_archive(breast, tmp_path: Path):
    assert (breast().imgs == 7).all()
    assert (tmp_path / "root" / "breastmnist.npz").read_bytes() == (tmp_path / "set.npz").read_bytes()


@pytest.mark.parametrize("fault", ["cut", "corrupt", "fail"])
def test_medmnist_says_the_same_of_every_fault_and_does_not_try_again(server: Server, breast, fault: str):
    getattr(server, fault)("breastmnist.npz", times=None)
    with pytest.raises(RuntimeError, match="Automatic download failed"):
        breast()
    # One request for the address behind redirects, which reads nothing, and one for the file
    assert len(server.requests) == (1 if fault == "fail" else 2)


def test_torch_hub_checks_the_hash_in_the_name(server: Server, tmp_path: Path):
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
        assert not list((tmp_path / "hub").iterdir())
    assert torch.equal(load()["weight"], torch.arange(300.0))
