"""A private CA and a server's certificate, made with openssl as the usual recipe has it."""

import ssl
import subprocess
from pathlib import Path


def make_private_ca(folder: Path) -> tuple[ssl.SSLContext, Path]:
    """Return what a server on 127.0.0.1 serves with, and the file of the CA that it is trusted by.

    Both certificates lack extensions that RFC 5280 demands, and Python since 3.13 with it.
    """
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1")
    new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj")
    authority = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial")
    for command in (
        ("req", "-x509", *new_key, "/CN=a CA", "-keyout", "ca.key", "-out", "ca.pem"),
        ("req", *new_key, "/CN=a server", "-keyout", "server.key", "-out", "server.csr"),
        (
            "x509",
            "-req",
            "-in",
            "server.csr",
            *authority,
            "-extfile",
            "names",
            "-out",
            "server.pem",
        ),
    ):
        subprocess.run(["openssl", *command], cwd=folder, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    return context, folder / "ca.pem"
