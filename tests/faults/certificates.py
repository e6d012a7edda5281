"""Certificates for loopback, made with openssl: one to be trusted, one from a stranger, one old."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_CONFIG = """\
[ca]
default_ca = ours
[ours]
database = index.txt
new_certs_dir = .
rand_serial = yes
default_md = sha256
policy = any
x509_extensions = leaf
unique_subject = no
[any]
commonName = supplied
[leaf]
subjectAltName = IP:127.0.0.1
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
[root]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign
subjectKeyIdentifier = hash
"""
_KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
_TIMEOUT_S = 60


@dataclass(frozen=True)
class Certificate:
    """What a server shows, and its key."""

    chain: Path
    key: Path


@dataclass(frozen=True)
class Certificates:
    """Three servers' certificates, and the authority that the runner is told to trust."""

    ca_file: Path
    trusted: Certificate
    untrusted: Certificate
    """By another authority."""
    expired: Certificate
    """By the trusted authority, valid in the year 2020."""


def make_certificates(folder: Path) -> Certificates:
    """Make them all; a folder is filled."""
    ours, stranger = _authority(folder / "ours"), _authority(folder / "stranger")
    return Certificates(
        ca_file=ours / "root.pem",
        trusted=_leaf(ours, "trusted", "20200101000000Z", "20990101000000Z"),
        untrusted=_leaf(stranger, "untrusted", "20200101000000Z", "20990101000000Z"),
        expired=_leaf(ours, "expired", "20200101000000Z", "20210101000000Z"),
    )


def _authority(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config").write_text(_CONFIG)
    (folder / "index.txt").touch()
    command = ["req", "-x509", "-config", "config", "-extensions", "root", "-days", "30", *_KEY]
    _openssl(
        folder, *command, "-subj", "/CN=test authority", "-keyout", "root.key", "-out", "root.pem"
    )
    return folder


def _leaf(authority: Path, name: str, begins: str, ends: str) -> Certificate:
    subject = ["-subj", "/CN=127.0.0.1"]
    _openssl(
        authority, "req", "-new", *_KEY, *subject, "-keyout", f"{name}.key", "-out", f"{name}.csr"
    )
    span = ["-startdate", begins, "-enddate", ends]
    signed = [
        "-cert",
        "root.pem",
        "-keyfile",
        "root.key",
        "-in",
        f"{name}.csr",
        "-out",
        f"{name}.pem",
    ]
    _openssl(authority, "ca", "-batch", "-notext", "-config", "config", *span, *signed)
    return Certificate(authority / f"{name}.pem", authority / f"{name}.key")


def _openssl(folder: Path, *arguments: str) -> None:
    try:
        subprocess.run(
            ["openssl", *arguments],
            cwd=folder,
            check=True,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
        )
    except subprocess.CalledProcessError as error:
        raise AssertionError(f"openssl {arguments[0]} failed: {error.stderr}") from error
