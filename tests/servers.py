"""Servers on the loopback that hold DVC's objects: S3, SSH, and plain files over HTTP."""

from __future__ import annotations

import contextlib
import functools
import getpass
import json
import os
import shutil
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

BUCKET = "tissue"
# sshd insists on an absolute path, which a user's PATH may not cover.
SSHD = shutil.which("sshd", path=os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/usr/local/sbin"]))
SSHD_CONFIG = """
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host
AuthorizedKeysFile {folder}/user.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
Subsystem sftp internal-sftp
"""


@dataclass(frozen=True)
class S3:
    """A bucket, and the key of a user who may use it."""

    url: str
    key: str
    secret: str


@contextlib.contextmanager
def s3_server() -> Iterator[S3]:
    """moto's S3 with an empty bucket, which only accepts the user's key."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        url = f"http://{host}:{port}"
        yield S3(url, *_create_user(url))
    finally:
        server.stop()


def _create_user(url: str) -> tuple[str, str]:
    """Creates bucket and user, then makes the server check keys."""
    import boto3

    anyone = {"aws_access_key_id": "anyone", "aws_secret_access_key": "anything", "region_name": "us-east-1"}
    boto3.client("s3", endpoint_url=url, **anyone).create_bucket(Bucket=BUCKET)
    iam = boto3.client("iam", endpoint_url=url, **anyone)
    iam.create_user(UserName="colleague")
    policy = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}
    iam.put_user_policy(UserName="colleague", PolicyName="store", PolicyDocument=json.dumps(policy))
    key = iam.create_access_key(UserName="colleague")["AccessKey"]
    check_keys = urllib.request.Request(f"{url}/moto-api/reset-auth", b"0", {"Content-Type": "text/plain"})
    urllib.request.urlopen(check_keys).close()
    return key["AccessKeyId"], key["SecretAccessKey"]


@dataclass(frozen=True)
class SSH:
    """A server for the user who runs the tests, that user's key, and one that it does not accept."""

    port: int
    user: str
    key: Path
    unknown_key: Path


@contextlib.contextmanager
def ssh_server(folder: Path) -> Iterator[SSH]:
    """The system's sshd, with keys in `folder`."""
    import asyncssh

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name in ("host", "user", "unknown"):
        key = asyncssh.generate_private_key("ssh-ed25519")
        key.write_private_key(folder / name)
        (folder / name).chmod(0o600)
        key.write_public_key(folder / f"{name}.pub")
    (folder / "sshd_config").write_text(SSHD_CONFIG.format(port=port, folder=folder))
    # sshd needs this folder when it runs as root
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    with open(folder / "log", "wb") as log:
        server = subprocess.Popen([SSHD, "-D", "-e", "-f", folder / "sshd_config"], stderr=log)
        try:
            _wait_for(server, port, folder / "log")
            yield SSH(port, getpass.getuser(), folder / "user", folder / "unknown")
        finally:
            server.terminate()
            server.wait(timeout=20)


def _wait_for(server: subprocess.Popen, port: int, log: Path) -> None:
    """Returns when the port answers."""
    for _ in range(400):
        assert server.poll() is None, log.read_text()
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise TimeoutError(log.read_text())


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@contextlib.contextmanager
def http_server(root: Path) -> Iterator[str]:
    """Serves the files under `root`, and yields the URL."""
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(root))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
