"""What can be set about a server, and what cannot."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc
from tests.sdk.serving.conftest import SETTINGS, serving

from saccade.batching import Limits
from saccade.bundle import Bundle
from saccade.cli import main
from saccade.errors import UsageError
from saccade.serving.settings import ServerSettings

SETTINGS_THAT_CANNOT_BE: list[tuple[dict[str, Any], str]] = [
    ({"http_port": 70000}, "http_port is 70000"),
    ({"http_port": 8000, "grpc_port": 8000}, "both 8000"),
    ({"http_port": None}, "http_port is None; it must be a whole number from 0 to 65535"),
    ({"max_body_bytes": 0}, "max_body_bytes is 0; it must be a whole number from 1 to 2147483647"),
    ({"max_body_bytes": 2**31}, "from 1 to 2147483647"),
    ({"max_body_bytes": 1e6}, "max_body_bytes is 1000000.0"),
    ({"drain_s": -1}, "drain_s is -1; it must be a number from 0.1 to 86400"),
    ({"drain_s": math.inf}, "drain_s is inf"),
    ({"request_timeout_ms": math.inf}, "request_timeout_ms is inf"),
    ({"request_timeout_ms": 1e300}, "it must be a number from 1 to 86400000"),
    ({"upload_timeout_ms": math.nan}, "upload_timeout_ms is nan"),
    ({"max_connections": True}, "max_connections is True"),
    ({"threads": "two"}, "threads is 'two'; it must be a whole number"),
    ({"host": None}, "host is None; it must be text"),
    ({"control": "no"}, "control is 'no'; it must be true or false"),
    ({"token": 1234}, "printable"),
    ({"token": ""}, "printable"),
    ({"tls_key": Path("key.pem")}, "both files"),
    ({"device": "tpu"}, "write cpu"),
]


@pytest.mark.parametrize(("changes", "message"), SETTINGS_THAT_CANNOT_BE)
def test_settings_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ServerSettings(**changes)


def test_the_largest_settings_work(tiny_bundle: Bundle, image: np.ndarray[Any, Any]) -> None:
    day_ms = 86_400_000
    largest = SETTINGS.replace(
        batching=Limits(2, day_ms, 2**20),
        **{"request_timeout_ms": day_ms, "upload_timeout_ms": day_ms, "drain_s": 86_400},
        **{"max_body_bytes": 2**31 - 1, "max_picture_pixels": 2**31 - 1},
        **{"max_waiting_pictures": 2**20, "max_connections": 2**20},
    )
    with (
        serving(largest, own=tiny_bundle.path) as running,
        httpx.Client(base_url=f"http://{running.http}") as client,
        tritonclient.grpc.InferenceServerClient(running.grpc) as rpc,
    ):
        assert client.post("/v2/repository/index", json={"ready": True}).json()[0]["name"] == "own"
        given = tritonclient.grpc.InferInput("image", image.shape, "FP32")
        given.set_data_from_numpy(image)
        assert rpc.infer("own", [given]).as_numpy("logits").shape == (2, 10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["serve", "--max-body", "inf"], "--max-body is inf; it must be more than 0 and less than 2048 MiB"),
        (["serve", "--max-body", "nan"], "--max-body is nan"),
        (["serve", "--max-body", "2048"], "--max-body is 2048.0"),
        (["serve", "--drain", "inf"], "drain_s is inf"),
        (["serve", "--timeout", "1e306"], "request_timeout_ms is inf"),
        (["serve", "--delay", "inf"], "max_delay_ms is inf"),
        (["triton", "--delay", "inf", "repository"], "max_delay_ms is inf"),
    ],
)
def test_numbers_that_no_command_takes(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command, *more = options
    monkeypatch.setattr(sys, "argv", ["saccade", command, "--json", *more[:2], "digits-stvit", *more[2:]])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == UsageError.exit_code
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["type"] == "UsageError"
    assert message in error["message"]


def test_a_token_is_never_printed() -> None:
    assert "sesame" not in repr(ServerSettings(token="sesame"))
