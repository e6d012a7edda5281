"""Certificates for loopback, made with openssl: one to be trusted, one from a stranger, one old."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_CONFIG = """\
[ca]
default_ca = own
[own]
database = index.txt
new_certs_dir = .
rand_serial = yes
default_md = sha256
policy = any
x509_extensions = authority
[any]
commonName = supplied
[authority]
subjectAltName = IP:127.0.0.1
basicConstraints = critical, CA:TRUE
keyUsage = critical, digitalSignature, keyCertSign
subjectKeyIdentifier = hash
"""
_TIMEOUT_S = 60


@dataclass(frozen=True)
class Certificate:
    """What a server shows, and its key. Each is its own authority."""

    chain: Path
    key: Path


@dataclass(frozen=True)
class Certificates:
    """Three servers' certificates, and a file of those that the runner trusts."""

    ca_file: Path
    trusted: Certificate
    untrusted: Certificate
    """It is not in the file."""
    expired: Certificate
    """It is in the file, and was valid in the year 2020."""


def make_certificates(folder: Path) -> Certificates:
    """Make them all; a folder is filled."""
    folder.mkdir(parents=True)
    (folder / "config").write_text(_CONFIG)
    (folder / "index.txt").touch()
    trusted, untrusted, expired = (
        _make(folder, name, f"{last_year}0101000000Z")
        for name, last_year in (("trusted", 2099), ("untrusted", 2099), ("expired", 2021))
    )
    ca_file = folder / "ca.pem"
    ca_file.write_text(trusted.chain.read_text() + expired.chain.read_text())
    return Certificates(ca_file, trusted, untrusted, expired)


def _make(folder: Path, name: str, end: str) -> Certificate:
    certificate = Certificate(folder / f"{name}.pem", folder / f"{name}.key")
    key, request = certificate.key.name, f"{name}.csr"
    # `req -x509` takes no dates before OpenSSL 3.4.
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    dates = ["-startdate", "20200101000000Z", "-enddate", end]
    files = ["-keyfile", key, "-in", request, "-out", certificate.chain.name]
    for arguments in (
        ["req", "-new", *curve, "-subj", f"/CN={name}", "-keyout", key, "-out", request],
        ["ca", "-selfsign", "-batch", "-notext", "-config", "config", *dates, *files],
    ):
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
    return certificate
