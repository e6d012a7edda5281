"""A registry of one image, on this host, whose layer comes in two halves."""

import gzip
import hashlib
import io
import json
import os
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.harness.until import DEADLINE_S

SIZE = 3 << 20
MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
CONFIG = "application/vnd.docker.container.image.v1+json"
LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"


class Registry(ThreadingHTTPServer):
    """Serves the image `x:1`; the second half of its layer waits for `go`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.go = threading.Event()
        layer = _archive()
        packed = gzip.compress(layer, 1)
        rootfs = {"type": "layers", "diff_ids": [_digest(layer)]}
        config = {"architecture": "amd64", "os": "linux", "config": {}, "rootfs": rootfs}
        blobs = {CONFIG: json.dumps(config).encode(), LAYER: packed}
        parts = [
            {"mediaType": kind, "size": len(blob), "digest": _digest(blob)}
            for kind, blob in blobs.items()
        ]
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": parts[0],
            "layers": parts[1:],
        }
        self.manifest = json.dumps(manifest).encode()
        self.blobs = {_digest(blob): blob for blob in blobs.values()}

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Registry

    def do_HEAD(self) -> None:
        self._send_head()

    def do_GET(self) -> None:
        content = self._send_head()
        half = len(content) // 2
        self.wfile.write(content[:half])
        if len(content) >= SIZE:
            self.server.go.wait(DEADLINE_S)
        self.wfile.write(content[half:])

    def _send_head(self) -> bytes:
        is_manifest = "/manifests/" in self.path
        content = self.server.manifest if is_manifest else b"{}"
        content = self.server.blobs.get(self.path.rpartition("/")[2], content)
        self.send_response(200)
        self.send_header("Content-Type", MANIFEST if is_manifest else "application/octet-stream")
        self.send_header("Content-Length", str(len(content)))
        if is_manifest:
            self.send_header("Docker-Content-Digest", _digest(content))
        self.end_headers()
        return content

    def log_message(self, *_: object) -> None:
        """Keep it out of the tests' output."""


@contextmanager
def serving_image() -> Iterator[Registry]:
    registry = Registry()
    thread = threading.Thread(target=registry.serve_forever)
    thread.start()
    try:
        yield registry
    finally:
        registry.go.set()
        registry.shutdown()
        registry.server_close()
        thread.join()


def _archive() -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        member = tarfile.TarInfo("file")
        member.size = SIZE
        tar.addfile(member, io.BytesIO(os.urandom(SIZE)))
    return archive.getvalue()


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
