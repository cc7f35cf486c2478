"""The report of a run or a benchmark that still grows, to look at in a browser on this machine and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from urllib.parse import unquote, urlsplit

from ..core.log import FILE
from . import page

HOST = "127.0.0.1"
PERIOD = 3.0  # seconds between two looks of a page at whether there is something new
SENT = {".mp4": "video/mp4", ".png": "image/png", ".html": "text/html; charset=utf-8"}
"""Files that are handed out beside the report, and as what."""
FOLLOW = """<script>
(() => {
  setInterval(async () => {
    try {
      if (await (await fetch("/version", {cache: "no-store"})).text() !== "VERSION") location.reload();
    } catch { /* the server has ended; the page stays as it is */ }
  }, PERIOD);
})();
</script>""".replace("PERIOD", str(int(1000 * PERIOD)))


class Server(ThreadingHTTPServer):
    """Serves the report of a directory on 127.0.0.1, written anew whenever a run in it has grown. port: 0 takes a free one.

    Use it as a context, or call `serve_forever`. Raises OSError where the port is taken.
    """

    daemon_threads = True

    def __init__(self, directory: Path, write: Callable[[Path], Path], port: int = 0) -> None:
        self.directory, self._write = Path(directory).resolve(), write
        self._lock, self._written = Lock(), ""
        super().__init__((HOST, port), _Handler)

    @property
    def address(self) -> str:
        """Where a browser finds it."""
        return f"http://{HOST}:{self.server_port}/"

    def version(self) -> str:
        """A word that changes when a run writes something."""
        paths = [self.directory / FILE, *self.directory.glob(f"*/*/*/{FILE}"), *self.directory.glob("*/*/*/cell.json")]
        told = [(str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(paths) if path.is_file()]
        return blake2b(repr(told).encode(), digest_size=8).hexdigest()

    def report(self) -> bytes:
        """The page as of now, with what makes it follow."""
        with self._lock:
            version = self.version()
            if version != self._written:
                self._write(self.directory)
                self._written = version
        text = (self.directory / page.FILE).read_text(encoding="utf-8")
        return text.replace("</body>", f"{FOLLOW.replace('VERSION', version)}\n</body>").encode()


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        """The report at /, its version at /version, and films, pictures and reports below the directory."""
        # A page of another site may have its name point here; it must not read what this machine alone may see.
        if (self.headers.get("Host") or "").rpartition(":")[0] not in (HOST, "localhost"):
            return self.send_error(HTTPStatus.FORBIDDEN)
        path = unquote(urlsplit(self.path).path).lstrip("/")
        if path == "":
            return self._send(self.server.report(), SENT[".html"])
        if path == "version":
            return self._send(self.server.version().encode(), "text/plain")
        file = (self.server.directory / path).resolve()
        if file.suffix not in SENT or not file.is_relative_to(self.server.directory) or not file.is_file():
            return self.send_error(HTTPStatus.NOT_FOUND)
        return self._send(file.read_bytes(), SENT[file.suffix])

    def _send(self, content: bytes, kind: str) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing is printed for a request."""
