"""Servers on the loopback that hold DVC's objects: S3, SSH, and plain files over HTTP."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import pwd
import shutil
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

BUCKET = "tissue"
REFUSED = b"""<?xml version="1.0"?><Error><Code>InvalidArgument</Code>\
<Message>x-amz-content-sha256 must be UNSIGNED-PAYLOAD, or a valid sha256 value.</Message></Error>"""
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
def s3_server(checksums: bool = True) -> Iterator[S3]:
    """moto's S3 with an empty bucket, which only accepts the user's key.

    Without `checksums` it refuses the checksum headers of newer clients, as older MinIO, Ceph and other stores do.
    """
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    moto = DomainDispatcherApplication(create_backend_app)
    server = make_server("127.0.0.1", 0, moto if checksums else functools.partial(_refuse_checksums, moto), threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_port}"
        yield S3(url, *_create_user(url))
    finally:
        server.shutdown()
        thread.join()


def _refuse_checksums(moto: Callable, environ: dict, start_response: Callable) -> Iterable[bytes]:
    """A WSGI application that answers uploads with a checksum header with an error."""
    names = ("HTTP_X_AMZ_CHECKSUM", "HTTP_X_AMZ_TRAILER", "HTTP_X_AMZ_SDK_CHECKSUM_ALGORITHM")
    if environ["REQUEST_METHOD"] not in ("PUT", "POST") or not any(key.startswith(names) for key in environ):
        return moto(environ, start_response)
    start_response("400 Bad Request", [("Content-Type", "application/xml"), ("Content-Length", str(len(REFUSED)))])
    return [REFUSED]


def _create_user(url: str) -> tuple[str, str]:
    """Creates bucket and user, then makes the server check keys. moto keeps its state for the whole process."""
    import boto3

    for path, body in (("reset", b""), ("reset-auth", b"inf")):
        _ask_moto(url, path, body)

    anyone = {"aws_access_key_id": "anyone", "aws_secret_access_key": "anything", "region_name": "us-east-1"}
    boto3.client("s3", endpoint_url=url, **anyone).create_bucket(Bucket=BUCKET)
    iam = boto3.client("iam", endpoint_url=url, **anyone)
    iam.create_user(UserName="colleague")
    policy = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}
    iam.put_user_policy(UserName="colleague", PolicyName="store", PolicyDocument=json.dumps(policy))
    key = iam.create_access_key(UserName="colleague")["AccessKey"]
    _ask_moto(url, "reset-auth", b"0")
    return key["AccessKeyId"], key["SecretAccessKey"]


def _ask_moto(url: str, path: str, body: bytes) -> None:
    urllib.request.urlopen(urllib.request.Request(f"{url}/moto-api/{path}", body, {"Content-Type": "text/plain"})).close()


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
            yield SSH(port, pwd.getpwuid(os.geteuid()).pw_name, folder / "user", folder / "unknown")
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
