"""Servers on the loopback that hold DVC's objects: S3, SSH, plain files over HTTP; and a relay that cuts connections off."""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

BUCKET = "tissue"
CHUNK = 1 << 16

# asyncssh's own server: for machines without sshd, and for superusers to whom sshd wants folders of the system.
SFTP = """
import asyncio, getpass, sys
import asyncssh

async def serve(port, host_key, authorized_keys):
    options = {"server_host_keys": [host_key], "authorized_client_keys": authorized_keys, "sftp_factory": True}
    await asyncssh.listen("127.0.0.1", int(port), **options)
    await asyncio.Event().wait()

asyncio.run(serve(*sys.argv[1:]))
"""

SSHD = """
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
Subsystem sftp internal-sftp
"""


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _program(name: str) -> str | None:
    """The path of a program, also where the user's PATH leaves the system's out."""
    return shutil.which(name, path=os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/usr/local/sbin"]))


@contextlib.contextmanager
def _running(command: list[str], port: int) -> Iterator[None]:
    """A server in a process of its own, from its first open port to the end of the `with` block."""
    # not a pipe: a server that says much would wait for someone to read it
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log)
        try:
            _wait_for(process, port, log)
            yield
        finally:
            process.terminate()
            process.wait(timeout=20)


def _wait_for(process: subprocess.Popen, port: int, log: TextIO, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if process.poll() is not None:
            log.seek(0)
            raise RuntimeError(f"the server has ended: {log.read()}")
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise TimeoutError("the server does not answer")


@dataclass(frozen=True)
class S3:
    """A bucket, and the key of a user who may use it."""

    port: int
    key: str
    secret: str

    @property
    def url(self) -> str:
        """The endpoint."""
        return f"http://127.0.0.1:{self.port}"

    def client(self):
        """Amazon's own client, as that user."""
        import boto3

        keys = {"aws_access_key_id": self.key, "aws_secret_access_key": self.secret}
        return boto3.client("s3", endpoint_url=self.url, region_name="us-east-1", **keys)


@contextlib.contextmanager
def s3_server() -> Iterator[S3]:
    """moto's S3, empty but for a bucket, that from here on answers to the user's key alone."""
    port = free_port()
    with _running([sys.executable, "-m", "moto.server", "--port", str(port)], port):
        yield S3(port, *_s3_user(port))


def _s3_user(port: int) -> tuple[str, str]:
    """Makes bucket and user, then has the server check keys."""
    import boto3

    url = f"http://127.0.0.1:{port}"
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
    """A server for the user who runs the tests, that user's key, and a key that it does not know."""

    port: int
    user: str
    key: Path
    unknown_key: Path


@contextlib.contextmanager
def ssh_server(folder: Path) -> Iterator[SSH]:
    """The system's sshd where it starts, asyncssh's server elsewhere."""
    import asyncssh

    port = free_port()
    for name in ("host_key", "user_key", "unknown_key"):
        key = asyncssh.generate_private_key("ssh-ed25519")
        key.write_private_key(folder / name)
        (folder / name).chmod(0o600)
        if name == "user_key":
            key.write_public_key(folder / "authorized_keys")
    config = folder / "sshd_config"
    config.write_text(SSHD.format(port=port, folder=folder))
    command = [sys.executable, "-c", SFTP, str(port), str(folder / "host_key"), str(folder / "authorized_keys")]
    sshd = _program("sshd")
    if sshd and subprocess.run([sshd, "-t", "-f", config], capture_output=True).returncode == 0:
        command = [sshd, "-D", "-e", "-f", str(config)]
    with _running(command, port):
        yield SSH(port, getpass.getuser(), folder / "user_key", folder / "unknown_key")


@contextlib.contextmanager
def http_server(root: Path) -> Iterator[int]:
    """Serves the files under `root`; its port."""
    port = free_port()
    with _running([sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(root)], port):
        yield port


class Relay:
    """Passes bytes on to a port; after `left` bytes, either way, it closes everything that goes through it.

    While `left` is None nothing is cut off; at 0 every connection is closed at once.
    """

    def __init__(self, port: int):
        self.left: int | None = None
        self._target, self._lock = port, threading.Lock()
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Relay:
        return self

    def __exit__(self, *_):
        self._listener.close()
        self._close_all()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client = self._listener.accept()[0]
                if self.left == 0:
                    client.close()
                    continue
                server = socket.create_connection(("127.0.0.1", self._target))
                for one in (client, server):
                    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._open |= {client, server}
                for pair in ((client, server), (server, client)):
                    threading.Thread(target=self._pass_on, args=pair, daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(CHUNK):
                sink.sendall(data[: self._allowed(len(data))])
                if self.left == 0:
                    break
            sink.shutdown(socket.SHUT_WR)
        if self.left == 0:
            self._close_all()

    def _allowed(self, size: int) -> int:
        with self._lock:
            if self.left is None:
                return size
            taken = min(size, self.left)
            self.left -= taken
            return taken

    def _close_all(self) -> None:
        for one in list(self._open):
            self._open.discard(one)
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
