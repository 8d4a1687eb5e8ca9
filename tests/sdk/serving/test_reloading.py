"""Bundles that change on disk: what is served follows, and no other model notices."""

from __future__ import annotations

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.sdk.serving import two_towers
from tests.sdk.serving.conftest import SETTINGS, served, serving

IMAGE: dict[str, Any] = {
    "inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 3, 32, 32], "data": [0.5] * 3072}]
}
PAGES = ("/metrics", "/v2/models/stats", "/v2/health/ready", "/v1/models")


def replace(folder: Path, by: Path) -> None:
    shutil.rmtree(folder)
    shutil.copytree(by, folder)


def statuses(client: httpx.Client, *paths: str) -> list[int]:
    return [client.get(path).status_code for path in paths]


def infer(client: httpx.Client, model: str) -> int:
    return client.post(f"/v2/models/{model}/infer", json=IMAGE).status_code


def test_a_bundle_with_other_graphs_takes_the_place_of_the_old(own_bundle: Path, tmp_path: Path) -> None:
    towers = two_towers.write(tmp_path / "towers")
    classifier = tmp_path / "classifier"
    shutil.copytree(own_bundle, classifier)
    with (
        serving(SETTINGS.replace(grpc_port=None), a=own_bundle, b=towers) as running,
        httpx.Client(base_url=f"http://{running.http}") as client,
    ):
        load = "/v2/repository/models/{}/load"
        assert infer(client, "a") == infer(client, "b") == 200
        replace(towers, classifier)
        assert client.post(load.format("b")).status_code == 200
        assert statuses(client, "/v2/models/b", "/v2/models/b.text", *PAGES) == [200, 404, 200, 200, 200, 200]
        assert infer(client, "b") == 200
        replace(own_bundle, two_towers.write(tmp_path / "more"))
        assert client.post(load.format("a")).status_code == 200
        assert statuses(client, "/v2/models/a", "/v2/models/a.text", *PAGES) == [200] * 6
        stats = client.get("/v2/models/a/stats").json()["model_stats"]
        assert stats[0]["inference_stats"]["success"]["count"] == 1


def test_a_reload_that_fails_leaves_nothing_behind(own_bundle: Path, tmp_path: Path) -> None:
    """The bundle's second graph would have the name of another bundle."""
    folder = tmp_path / "serving"
    shutil.copytree(own_bundle, folder)
    bundles: dict[str, str | Path] = {"a": folder, "a.text": own_bundle}
    with (
        serving(SETTINGS.replace(grpc_port=None), **bundles) as running,
        httpx.Client(base_url=f"http://{running.http}") as client,
    ):
        replace(folder, two_towers.write(tmp_path / "towers"))
        threads = threading.active_count()
        for _ in range(3):
            refused = client.post("/v2/repository/models/a/load")
            assert (refused.status_code, "two bundles" in refused.json()["error"]) == (400, True)
        assert threading.active_count() <= threads
        assert infer(client, "a") == infer(client, "a.text") == 200
        assert client.post("/v2/repository/models/a/unload").status_code == 200
        assert client.post("/v2/repository/models/a/load").status_code == 400
        assert statuses(client, "/v2/health/ready", "/v2/models/a/ready") == [200, 503]


WRONG: list[tuple[Any, int]] = [
    ({"parameters": 5}, 422),
    ({"parameters": [[1]]}, 422),
    ({"parameters": {"config": "{}"}}, 422),
    ([], 422),
    ({"x": "y" * 70_000}, 413),
]


@pytest.mark.parametrize(("body", "status"), WRONG, ids=range(len(WRONG)))
def test_what_cannot_be_asked_of_the_repository(running: Any, body: Any, status: int) -> None:
    answer = httpx.post(f"http://{running.http}/v2/repository/models/tiny/load", json=body)
    assert answer.status_code == status


@pytest.mark.parametrize(
    "path", ["/v2/repository/models/tiny/unload", "/v2/systemsharedmemory/unregister", "/v2/repository/index"]
)
def test_pages_of_other_sites_change_nothing(running: Any, path: str) -> None:
    url = f"http://{running.http}{path}"
    assert httpx.post(url, headers={"Origin": "http://elsewhere.example"}).status_code == 403
    assert httpx.post(url, headers={"Origin": "null"}).status_code == 403
    assert httpx.get(f"http://{running.http}/v2/models/tiny/ready").status_code == 200


def test_a_version_that_is_never_served_is_not_there(running: Any) -> None:
    url = f"http://{running.http}/v2/models/tiny/versions"
    assert [httpx.get(f"{url}/{version}/ready").status_code for version in (1, 2)] == [200, 404]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="there is no /proc to read memory from")
def test_reloads_under_load_leave_no_memory_behind(own_bundle: Path) -> None:
    with (
        served(own_bundle) as server,
        httpx.Client(base_url=server.url, timeout=30) as client,
    ):

        def press() -> None:
            with httpx.Client(base_url=server.url, timeout=30) as other:
                assert {infer(other, "tiny") for _ in range(100)} == {200}

        press()
        before = server.resident()
        for _ in range(2):
            with ThreadPoolExecutor(2) as threads:
                pressed = [threads.submit(press) for _ in range(2)]
                for _ in range(10):
                    assert client.post("/v2/repository/models/tiny/load").status_code == 200
                for each in pressed:
                    each.result()
        press()
        assert server.resident() < 1.05 * before
