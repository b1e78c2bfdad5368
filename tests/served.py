"""A web server on this computer that behaves badly when it is asked to."""

from __future__ import annotations

import contextlib
import http.server
import threading
from collections.abc import Iterator


class Handler(http.server.BaseHTTPRequestHandler):
    """`/NAME` gives a file of `server.files`; the first part of the path says what goes wrong."""

    def do_GET(self) -> None:
        files = self.server.files  # type: ignore[attr-defined]
        *how, name = self.path.strip("/").split("/")
        manner = how[0] if how else ""
        if manner == "redirect":
            self.send_response(302)
            self.send_header("Location", files[name].decode())
            self.end_headers()
            return
        if name not in files:
            self.send_error(404)
            return
        content = files[name]
        self.send_response(200)
        if manner != "unsized":
            size = int(how[1]) if manner == "claims" else len(content)
            self.send_header("Content-Length", str(size))
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            if manner == "breaks":
                self.wfile.write(content[: len(content) // 2])
            elif manner == "stalls":
                self.wfile.write(content[:1000])
                self.wfile.flush()
                self.server.go_on.wait(60)  # type: ignore[attr-defined]
            else:
                self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def served(files: dict[str, bytes]) -> Iterator[str]:
    """Serve files; gives the address that their names follow."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files = files  # type: ignore[attr-defined]
    server.go_on = threading.Event()  # type: ignore[attr-defined]
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.go_on.set()  # type: ignore[attr-defined]
        server.shutdown()
        server.server_close()
