"""Downloads from a real server on this computer: whole, checked, limited, or not at all."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from served import served
from tttunet.errors import Cancelled, ModelError
from tttunet.models.download import check_url, download, parse_sha256

CONTENT = bytes(range(256)) * 8000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def files() -> dict[str, bytes]:
    return {"model.zip": CONTENT}


@pytest.fixture
def address(files: dict[str, bytes]) -> Iterator[str]:
    with served(files) as url:
        yield url


@pytest.mark.parametrize("manner", ["", "unsized/"])
def test_a_file_arrives_whole(address: str, tmp_path: Path, manner: str):
    told: list[tuple[int, int]] = []
    found = download(
        f"{address}/{manner}model.zip",
        tmp_path / "a.zip",
        sha256=f" SHA256:{DIGEST.upper()} ",
        progress=lambda *x: told.append(x),
    )
    assert (found.sha256, found.bytes) == (DIGEST, len(CONTENT))
    assert found.path.read_bytes() == CONTENT
    assert told[-1] == (len(CONTENT), len(CONTENT))
    assert len(told) > 3


@pytest.mark.parametrize(
    ("place", "options", "message"),
    [
        ("model.zip", {"sha256": "0" * 64}, f"another checksum than was given: {DIGEST}"),
        ("model.zip", {"limit": 1000}, r"larger than 1000 bytes: 2 MB"),
        ("unsized/model.zip", {"limit": 100_000}, "larger than 98 KB"),
        ("claims/9999999999999/model.zip", {"limit": 10**15}, "There is no space for"),
        ("breaks/model.zip", {}, "connection ended after .* of 2 MB"),
        ("missing.zip", {}, "answered 404"),
        ("model.zip", {"sha256": "abc"}, "'abc' is no SHA-256 checksum"),
    ],
)
def test_what_goes_wrong_is_told_and_nothing_is_kept(
    address: str, tmp_path: Path, place: str, options: dict, message: str
):
    with pytest.raises(ModelError, match=message):
        download(f"{address}/{place}", tmp_path / "a.zip", **options)
    assert not list(tmp_path.iterdir())


def test_a_server_that_falls_silent_can_be_left_at_once(address: str, tmp_path: Path):
    start = time.monotonic()
    with pytest.raises(Cancelled):
        download(
            f"{address}/stalls/model.zip",
            tmp_path / "a.zip",
            cancel=lambda: time.monotonic() - start > 0.5,
        )
    # The download itself still waits.
    assert "tttunet-download" in {thread.name for thread in threading.enumerate()}
    assert not list(tmp_path.iterdir())


def test_redirects_are_followed_only_where_the_address_may_lead(
    address: str, files: dict[str, bytes], tmp_path: Path
):
    files["good"] = f"{address}/model.zip".encode()
    assert download(f"{address}/redirect/good", tmp_path / "a.zip").sha256 == DIGEST
    for target in ("http://example.org/model.zip", f"file://{tmp_path}/a.zip", "ftp://127.0.0.1/x"):
        files["bad"] = target.encode()
        with pytest.raises(ModelError, match=r"is not encrypted|no address|not where"):
            download(f"{address}/redirect/bad", tmp_path / "b.zip")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://example.org/model.zip", "is not encrypted"),
        ("http://localhost.example.org/model.zip", "is not encrypted"),
        ("http://127.0.0.1.example.org/model.zip", "is not encrypted"),
        ("file:///etc/passwd", "no address"),
        ("ftp://example.org/a.zip", "no address"),
        ("example.org/a.zip", "no address"),
        ("https://", "no address"),
        ("https://user:secret@example.org/a.zip", "no address"),
        ("https://example.org/a b.zip", "no address"),
        ("https://example.org:port/a.zip", "no address"),
        ("https://[::1/a.zip", "no address"),
        ("", "no address"),
    ],
)
def test_addresses_that_are_refused(url: str, message: str):
    with pytest.raises(ModelError, match=message):
        check_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "https://example.org/a.zip",
        "http://localhost:8000/a.zip",
        "http://[::1]:8000/a.zip",
        "http://127.0.0.1/a",
    ],
)
def test_addresses_that_may_be_asked(url: str):
    check_url(url)


def test_no_checksum_is_a_checksum_too():
    assert parse_sha256("  ") == ""


def test_servers_that_cannot_be_reached(address: str, tmp_path: Path):
    port = address.rpartition(":")[2]
    with pytest.raises(ModelError, match="is not secure"):
        download(f"https://127.0.0.1:{port}/model.zip", tmp_path / "a.zip")
    with served({}) as other:
        pass
    with pytest.raises(ModelError, match="cannot be reached"):
        download(f"{other}/model.zip", tmp_path / "a.zip")
    assert not list(tmp_path.iterdir())
