"""The server: this machine only, no request to any other host."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pathsynth.app.drawing_service import DrawingService
from pathsynth.app.recent_images import RecentImages
from pathsynth.app.views import IMAGES_URL, read_css
from pathsynth.core.errors import PathsynthError
from pathsynth.core.io import os_error_reason
from pathsynth.synthesis.artifacts import Artifacts

if TYPE_CHECKING:
    from fastapi import FastAPI

HOST = "127.0.0.1"
# Names by which a browser may ask for the page. Another one belongs to a foreign site that points to this machine.
ALLOWED_HOSTS = (HOST, "localhost")
MAX_UPLOAD = "20mb"
# Seconds that open connections get at the end.
SHUTDOWN_TIMEOUT = 2
# Parts of Gradio that are not needed.
OFF: dict[str, Any] = {
    "run_history": False,
    "mcp_server": False,
    "ssr_mode": False,
    "pwa": False,
    "enable_monitoring": False,
}
# Gradio's page needs inline scripts and eval; whatever it names on other hosts is not loaded.
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; object-src 'none'; "
    "base-uri 'self'; form-action 'self'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class ServerError(PathsynthError):
    """The page cannot be served."""


def open_socket(port: int) -> socket.socket:
    """Listens on a port of HOST; 0 takes a free one.

    Raises:
        ServerError: if the port is taken or reserved.
    """
    opened = socket.socket()
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        opened.bind((HOST, port))
        # from here on a browser waits instead of being refused
        opened.listen()
    except OSError as error:
        opened.close()
        raise ServerError(f"port {port}: {os_error_reason(error)}; choose another one with --port") from error
    return opened


def build_server(artifacts: Artifacts, folder: Path) -> FastAPI:
    """Builds the server of page and images.

    Args:
        artifacts: settings and models.
        folder: for the files of visitors; the caller removes it.

    Raises:
        ServerError: if Gradio is not installed.
    """
    images, uploads = folder / "images", folder / "uploads"
    for path in (images, uploads):
        path.mkdir()
    gr = _import_gradio(uploads)
    from fastapi import FastAPI
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.staticfiles import StaticFiles

    from pathsynth.app.page import build_page, build_theme

    page = build_page(DrawingService(artifacts, RecentImages(images)))
    guards = [Middleware(TrustedHostMiddleware, allowed_hosts=list(ALLOWED_HOSTS)), Middleware(SameOriginMiddleware)]
    server = FastAPI(middleware=guards, openapi_url=None)
    server.mount(IMAGES_URL, StaticFiles(directory=images))
    return gr.mount_gradio_app(
        server,
        page,
        "/",
        server_name=HOST,
        footer_links=[],
        show_error=False,
        max_file_size=MAX_UPLOAD,
        theme=build_theme(),
        css=read_css(),
        **OFF,
    )


def _import_gradio(uploads: Path) -> ModuleType:
    """Imports Gradio, whose packages include FastAPI and Starlette, with its settings."""
    # read when Gradio is imported or a page is built
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": str(uploads)}
    try:
        import gradio
    except ModuleNotFoundError as error:
        raise ServerError(f"app: {error.name} is not installed; run `make app`, which installs Gradio first") from error
    return gradio


def serve(server: FastAPI, opened: socket.socket) -> None:
    """Serves until Ctrl-C or SIGTERM."""
    import uvicorn

    config = uvicorn.Config(server, log_level="warning", timeout_graceful_shutdown=SHUTDOWN_TIMEOUT)
    with suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[opened])


class SameOriginMiddleware:
    """Rejects cross-origin requests and adds security headers."""

    def __init__(self, app: Callable):
        self._app = app

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        """Handles a request (ASGI)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        from starlette.datastructures import Headers, MutableHeaders
        from starlette.responses import PlainTextResponse

        headers = Headers(scope=scope)
        if headers.get("origin", f"http://{headers.get('host')}") != f"http://{headers.get('host')}":
            await PlainTextResponse("Requests of other sites are refused.", 403)(scope, receive, send)
            return

        async def send_with_headers(message: dict) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await self._app(scope, receive, send_with_headers)
