"""Files for TLS that cannot be used are named."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.sdk.serving.conftest import SETTINGS

from saccade.bundle import Bundle
from saccade.errors import UsageError
from saccade.serving.certificates import check_pair
from saccade.serving.server import Server

_NEW = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=localhost"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """certificate.pem with key.pem, and what does not go with them."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here to make a certificate")
    made = tmp_path_factory.mktemp("tls")
    for command in (
        f"{_NEW} -keyout key.pem -out certificate.pem",
        f"{_NEW} -keyout other.pem -out others_certificate.pem",
        "ec -in key.pem -aes128 -passout pass:sesame -out locked.pem",
        "x509 -in certificate.pem -outform der -out binary.pem",
    ):
        subprocess.run(["openssl", *command.split()], cwd=made, check=True, capture_output=True)
    (made / "empty.pem").touch()
    return made


def test_a_certificate_and_its_key(folder: Path) -> None:
    check_pair(folder / "certificate.pem", folder / "key.pem")


@pytest.mark.parametrize(
    ("certificate", "key", "message"),
    [
        ("key", "key", "--tls-certificate {}/key.pem holds no certificates in PEM"),
        ("empty", "key", "--tls-certificate {}/empty.pem holds no certificates"),
        ("binary", "key", "--tls-certificate {}/binary.pem holds no certificates"),
        ("certificate", "certificate", "--tls-key {}/certificate.pem holds no private key"),
        ("certificate", "empty", "--tls-key {}/empty.pem holds no private key"),
        (
            "certificate",
            "locked",
            "--tls-key {}/locked.pem holds no private key, in PEM and without a password",
        ),
        ("certificate", "other", "--tls-key {0}/other.pem is not the key of --tls-certificate {0}/cert"),
    ],
)
def test_the_file_that_cannot_be_used_is_named(
    certificate: str, key: str, message: str, folder: Path
) -> None:
    with pytest.raises(UsageError, match=re.escape(message.format(folder))):
        check_pair(folder / f"{certificate}.pem", folder / f"{key}.pem")


@pytest.mark.parametrize("grpc_port", [0, None])
def test_the_server_says_it_with_and_without_grpc(
    grpc_port: int | None, folder: Path, tiny_bundle: Bundle
) -> None:
    files = {"tls_certificate": folder / "certificate.pem", "tls_key": folder / "empty.pem"}

    async def listen() -> None:
        await Server(SETTINGS.replace(grpc_port=grpc_port, **files), {"own": tiny_bundle.path}).listen()

    with pytest.raises(UsageError, match=r"--tls-key .*empty\.pem holds no private key"):
        asyncio.run(listen())
