"""The files behind TLS, checked before both ports rely on them."""

from __future__ import annotations

import ssl
from pathlib import Path

from saccade.errors import UsageError

__all__ = ["check_pair"]


def check_pair(certificate: Path, key: Path) -> None:
    """UsageError that names the file which is no PEM certificate, or no key, or not the certificate's key.

    gRPC only says that it cannot listen, and OpenSSL names neither file. Keys with passwords are refused:
    nobody is there to type one.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_verify_locations(certificate)
    except OSError as error:
        raise UsageError(
            f"--tls-certificate {certificate} holds no certificates in PEM: {_reason(error)}"
        ) from error
    try:
        context.load_cert_chain(certificate, key, password="")
    except OSError as error:
        if isinstance(error, ssl.SSLError) and error.reason == "KEY_VALUES_MISMATCH":
            raise UsageError(f"--tls-key {key} is not the key of --tls-certificate {certificate}") from error
        raise UsageError(
            f"--tls-key {key} holds no private key, in PEM and without a password: {_reason(error)}"
        ) from error


def _reason(error: OSError) -> str:
    return str(error.strerror or error)
