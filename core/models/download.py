"""Fetching a file from an address that the user gave: checked, limited, and never half."""

from __future__ import annotations

import hashlib
import http.client
import ipaddress
import queue
import re
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tttunet.errors import Cancelled, ModelError
from tttunet.models.archive import free_bytes

#: The largest file that is accepted, in bytes, unless the caller says otherwise.
LIMIT = 2 * 2**30
#: A connection that is silent for so many seconds is given up.
SILENCE = 30.0
_CHUNK = 2**18
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Downloaded:
    """A file that was fetched: `sha256` and size in `bytes`, of what really arrived."""

    path: Path
    sha256: str
    bytes: int


def download(
    url: str,
    path: str | Path,
    *,
    sha256: str = "",
    limit: int = LIMIT,
    progress: Callable[[int, int], None] = lambda done, total: None,
    cancel: Callable[[], bool] = lambda: False,
) -> Downloaded:
    """Fetch a file.

    Args:
        url: https with a valid certificate; http only from this computer. The same holds for
            every address that it redirects to.
        path: where to write; removed again if anything fails.
        sha256: what the checksum must be; empty: any.
        limit: of the size in bytes, by the server's word and while reading.
        progress: told bytes done and in total (0: the server does not say).
        cancel: asked at least five times a second.

    Raises:
        ModelError: the address or the checksum cannot be used, the server cannot be reached or
            refuses, the file is too large, cut short, or has another checksum.
        Cancelled: `cancel` said so.
        OSError: the disk is full.
    """
    path = Path(path)
    expected = parse_sha256(sha256)
    check_url(url)
    stream = _Stream(url)
    try:
        digest, done = hashlib.sha256(), 0
        with path.open("wb") as file:
            total = stream.next(cancel)
            _check_size(total, limit, path)
            while chunk := stream.next(cancel):
                done += len(chunk)
                _check_size(done, limit, path, is_all=False)
                file.write(chunk)
                digest.update(chunk)
                progress(done, max(done, total))
        if total and done != total:
            raise ModelError(
                f"The connection ended after {_size(done)} of {_size(total)}.", "Try again."
            )
        found = digest.hexdigest()
        if expected and found != expected:
            raise ModelError(
                f"The file that was downloaded has another checksum than was given: {found}.",
                "Compare the address and the checksum with the page they come from; the file was "
                "not kept.",
            )
        return Downloaded(path, found, done)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    finally:
        stream.stop()


def check_url(url: str) -> None:
    """Whether an address may be asked.

    Raises:
        ModelError: it is no https address, nor an http address of this computer.
    """
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        parts.port  # noqa: B018  (raises if it is no number)
    except ValueError:
        parts, host = urlsplit(""), ""
    if any(c.isspace() or not c.isprintable() for c in url) or "@" in parts.netloc:
        host = ""
    if not host or parts.scheme not in ("http", "https"):
        raise ModelError(
            f"'{url}' is no address that can be downloaded from.", "Give one that begins https://."
        )
    if parts.scheme == "http" and not _is_this_computer(host):
        raise ModelError(
            f"'{url}' is not encrypted, so that the model could be replaced on its way.",
            "Give an address that begins https://.",
        )


def parse_sha256(text: str) -> str:
    """A checksum as people paste it ("sha256:AB12...", with blanks), in lower case, or "".

    Raises:
        ModelError: it has not 64 digits.
    """
    plain = text.strip().lower().removeprefix("sha256:").strip()
    if plain and not _SHA256.fullmatch(plain):
        raise ModelError(
            f"'{text.strip()}' is no SHA-256 checksum.",
            "It has 64 digits from 0-9 and a-f; leave it empty if you have none.",
        )
    return plain


def _is_this_computer(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check_size(size: int, limit: int, path: Path, is_all: bool = True) -> None:
    if size > limit:
        raise ModelError(
            f"The file is larger than {_size(limit)}{f': {_size(size)}' if is_all else ''}.",
            "Nothing was kept. Check whether the address is that of a model.",
        )
    if is_all and size > free_bytes(path.parent):
        raise ModelError(
            f"There is no space for {_size(size)} in '{path.parent}'.", "Free some space."
        )


def _size(count: float) -> str:
    for unit in ("bytes", "KB", "MB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GB"


class _CheckedRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Any:
        check_url(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _Stream:
    """A download in a thread of its own, so that a silent server cannot keep anybody waiting.

    The first item is the size that the server says (0: unknown), then come chunks, and at the end
    an empty one.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._items: queue.Queue[Any] = queue.Queue(maxsize=8)
        self._stopped = threading.Event()
        threading.Thread(target=self._run, name="tttunet-download", daemon=True).start()

    def next(self, cancel: Callable[[], bool]) -> Any:
        """The next item.

        Raises:
            Cancelled: while waiting for it.
            ModelError: what ended the download.
        """
        while True:
            if cancel():
                raise Cancelled("The download was stopped; nothing was kept.")
            try:
                item = self._items.get(timeout=0.2)
            except queue.Empty:
                continue
            if isinstance(item, Exception):
                raise item
            return item

    def stop(self) -> None:
        """The thread ends with its next chunk or timeout."""
        self._stopped.set()

    def _run(self) -> None:
        try:
            opener = urllib.request.build_opener(
                _CheckedRedirects(),
                urllib.request.HTTPSHandler(context=ssl.create_default_context()),
            )
            request = urllib.request.Request(self._url, headers={"User-Agent": "napari-tttunet"})
            with opener.open(request, timeout=SILENCE) as response:
                self._put(_content_length(response))
                while (chunk := response.read(_CHUNK)) and not self._stopped.is_set():
                    self._put(chunk)
            self._put(b"")
        except ModelError as error:
            self._put(error)
        except Exception as error:
            self._put(_explain(error, self._url))

    def _put(self, item: Any) -> None:
        while not self._stopped.is_set():
            try:
                self._items.put(item, timeout=0.2)
                return
            except queue.Full:
                continue


def _content_length(response: Any) -> int:
    text = response.headers.get("Content-Length") or ""
    return int(text) if text.isdigit() else 0


def _explain(error: Exception, url: str) -> ModelError:
    """What a network error means, in one sentence."""
    host = urlsplit(url).hostname
    reason = getattr(error, "reason", error)
    if isinstance(error, urllib.error.HTTPError) and error.code in range(300, 400):
        return ModelError(f"{host} leads on to a place that is not where a model may be.")
    if isinstance(error, urllib.error.HTTPError):
        hint = "Check the address." if error.code in (400, 404, 410) else "Try again later."
        return ModelError(f"{host} answered {error.code} ({error.reason}).", hint)
    if isinstance(reason, ssl.SSLError):
        return ModelError(
            f"The connection to {host} is not secure: {getattr(reason, 'reason', '') or reason}.",
            "The certificate cannot be verified; nothing was downloaded.",
        )
    if isinstance(reason, TimeoutError):
        return ModelError(f"{host} does not answer.", "Try again later.")
    if isinstance(error, http.client.HTTPException | ConnectionError) or not isinstance(
        error, urllib.error.URLError
    ):
        return ModelError(f"The connection to {host} broke.", "Try again.")
    text = getattr(reason, "strerror", None) or reason
    return ModelError(
        f"{host} cannot be reached: {text}.", "Check the address and the connection to the net."
    )
