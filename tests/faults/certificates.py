"""Certificates for loopback, made with openssl: one to be trusted, one from a stranger, one old."""

import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Certificate:
    """A server's certificate, which is its own authority, and its key."""

    chain: Path
    key: Path


@dataclass(frozen=True)
class Certificates:
    """The certificates of three servers; the runner trusts the file of the first and the third."""

    ca_file: Path
    trusted: Certificate
    untrusted: Certificate
    expired: Certificate


def make_certificates(folder: Path) -> Certificates:
    folder.mkdir(parents=True)
    trusted, untrusted, expired = (_make(folder / name) for name in ("one", "stranger", "old"))
    # Valid for the moment in which it is made.
    files = ("-in", expired.chain, "-signkey", expired.key, "-out", expired.chain)
    _openssl("x509", *files, "-days=0")
    ca_file = folder / "ca.pem"
    ca_file.write_text(trusted.chain.read_text() + expired.chain.read_text())
    return Certificates(ca_file, trusted, untrusted, expired)


def _make(path: Path) -> Certificate:
    certificate = Certificate(path.with_suffix(".pem"), path.with_suffix(".key"))
    _openssl(
        *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
        *("-subj", f"/CN={path.name}", "-addext", "subjectAltName=IP:127.0.0.1"),
        *("-addext", "keyUsage=critical,digitalSignature,keyCertSign"),
        *("-days", "3650", "-keyout", certificate.key, "-out", certificate.chain),
    )
    return certificate


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=60)
