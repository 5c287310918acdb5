"""Certificates for registries of the tests, made by openssl."""

import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]


@dataclass(frozen=True, slots=True)
class Certificate:
    """Files in PEM: the certificate authority's certificate, the server's certificate and its key."""

    authority: Path
    certificate: Path
    key: Path


def openssl(*words: str, stdin: bytes = b"") -> bytes:
    """What `openssl WORDS…` prints."""
    return subprocess.run(["openssl", *words], input=stdin, capture_output=True, check=True, timeout=30).stdout


def issue(folder: Path, *hosts: str) -> Certificate:
    """A certificate for `hosts` (names or IPv4 addresses), by an authority of its own that nobody trusts yet."""
    folder.mkdir(parents=True, exist_ok=True)
    authority, authority_key, request = (folder / name for name in ("ca.crt", "ca.key", "server.csr"))
    made = Certificate(authority, folder / "server.crt", folder / "server.key")
    openssl("req", "-x509", *_KEY, "-keyout", str(authority_key), "-out", str(authority), "-days", "2",
            "-subj", "/CN=authority of a test", "-addext", "keyUsage=critical,keyCertSign")  # fmt: skip
    openssl("req", *_KEY, "-keyout", str(made.key), "-out", str(request), "-subj", "/CN=registry of a test")
    names = ",".join(f"{'IP' if host.replace('.', '').isdigit() else 'DNS'}:{host}" for host in hosts)
    extensions = folder / "server.ext"
    extensions.write_text(f"subjectAltName={names}\nauthorityKeyIdentifier=keyid\nextendedKeyUsage=serverAuth\n")
    openssl("x509", "-req", "-in", str(request), "-CA", str(authority), "-CAkey", str(authority_key),
            "-CAcreateserial", "-days", "2", "-extfile", str(extensions), "-out", str(made.certificate))  # fmt: skip
    return made


@cache
def signing_key() -> tuple[bytes, bytes]:
    """An RSA key and its self-signed certificate, in PEM: what token servers of this run sign with."""
    with tempfile.TemporaryDirectory() as folder:
        key, certificate = Path(folder, "key.pem"), Path(folder, "certificate.pem")
        openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", str(key), "-out", str(certificate),
                "-days", "2", "-subj", "/CN=tokens of a test")  # fmt: skip
        return key.read_bytes(), certificate.read_bytes()
