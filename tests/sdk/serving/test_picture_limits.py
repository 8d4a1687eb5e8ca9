"""What one picture may ask for, how long it is worked on, and how much memory many large ones take."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from tests import every_task
from tests.sdk.serving import two_towers
from tests.sdk.serving.conftest import SETTINGS, Running, served, serving

from saccade.batching import Limits
from saccade.bundle import Bundle
from saccade.errors import DeadlineError, InputError
from saccade.serving.batched import Patience
from saccade.serving.options import count_tiles, parse_options
from saccade.serving.pixels import PixelBudget
from saccade.tiling import tiles

# Every run that is not full waits for company: many runs take long, and no processor.
SLOW_RUNS = SETTINGS.replace(grpc_port=None, batching=Limits(max_rows=64, max_delay_ms=20))


def _picture(width: int, height: int, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (width, height), (40, 90, 160)).save(stream, kind)
    return stream.getvalue()


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A detector, a segmenter and two towers, none of which hurries."""
    folder = tmp_path_factory.mktemp("bundles")
    bundles = {
        "boxes": every_task.write("detection", folder / "boxes").path,
        "areas": every_task.write("semantic_segmentation", folder / "areas").path,
        "clip": two_towers.write(folder / "clip"),
    }
    with serving(SLOW_RUNS, **bundles) as running:
        yield running


def _runs(running: Running, model: str) -> int:
    answer = httpx.get(f"http://{running.http}/v2/models/{model}/stats")
    return int(answer.json()["model_stats"][0]["execution_count"])


# Of each: the model that is asked and the one that runs, the options, and how many runs these would take.
LONG: dict[str, tuple[str, str, dict[str, Any], int]] = {
    "tiles": ("boxes", "boxes", {"tile": "100,60"}, 32),
    "areas": ("areas", "areas", {"tile": "100,60"}, 32),
    "sentences": (
        "clip",
        "clip.text",
        {"prompts": [f"class {n}" for n in range(64)], "templates": [f"{n} of {{}}" for n in range(50)]},
        100,
    ),
}


@pytest.mark.parametrize("leaves", ["told too late", "gone"])
@pytest.mark.parametrize("name", LONG)
def test_nothing_is_run_for_whom_nobody_answers_any_more(name: str, leaves: str, slow: Running) -> None:
    asked, runs, options, most = LONG[name]
    before = _runs(slow, runs)
    url, picture = f"http://{slow.http}/v1/models/{asked}/predict", _picture(700, 700)
    if leaves == "gone":
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(url, content=picture, params=options, timeout=0.25)
        time.sleep(0.25)  # until the server has seen it
    else:
        answer = httpx.post(url, content=picture, params=options | {"timeout_ms": 250})
        assert (answer.status_code, answer.json()) == (504, {"error": "no answer within 250 ms"})
    then = _runs(slow, runs)
    time.sleep(0.5)  # as long as 25 runs take
    assert _runs(slow, runs) <= then + 1  # what had begun
    assert then - before < most  # none, where the machine is so busy that decoding took all the time


MISTAKES: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "tiles of nothing": ("boxes", {"tile": "2,1"}, ["tile=2,1", "2000x1000", "1997001 tiles", "256"]),
    "tiles for areas": ("areas", {"tile": "99,98"}, ["tile=99,98", "tiles", "256"]),
    "no step": ("boxes", {"tile": "64,64"}, ["64,64", "less than the size"]),
    "sentences": (
        "clip",
        {"prompts": ["a"] * 101, "templates": ["{}"] * 100},
        ["101 prompts", "100 templates", "10100 sentences", "10000", "fewer"],
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_more_work_than_a_request_may_have_is_refused_before_it_begins(name: str, slow: Running) -> None:
    model, options, words = MISTAKES[name]
    begun = time.monotonic()
    answer = httpx.post(
        f"http://{slow.http}/v1/models/{model}/predict", content=_picture(2000, 1000), params=options
    )
    assert answer.status_code == 422, answer.text
    assert all(word in answer.json()["error"] for word in words), answer.text
    assert time.monotonic() - begun < 2


def test_tiles_are_counted_as_they_are_made() -> None:
    rng = np.random.default_rng(4)
    for _ in range(300):
        size = int(rng.integers(2, 40))
        overlap = int(rng.integers(1, size))
        height, width = (int(side) for side in rng.integers(1, 90, 2))
        made = len(tiles((height, width), size, overlap))
        options = parse_options("detection", [("tile", f"{size},{overlap}")])
        if made > 256:
            with pytest.raises(InputError, match=f"{made} tiles"):
                count_tiles(options, (height, width))
        else:
            assert count_tiles(options, (height, width)) == made


# What a client accepts, and what it gets; "" is a refusal. RFC 9110, section 12.5.1.
ACCEPTED = {
    "image/png": "image/png",
    "image/png;q=0": "",
    "image/png; q=0.000, */*": "application/json",
    "image/png;q=0.5, application/json": "application/json",
    "image/png, application/json;q=0.9": "image/png",
    "application/json;q=0.2, image/png;q=0.7": "image/png",
    "application/json;q=0, */*": "image/png",
    "image/*": "image/png",
    "image/*;q=0, image/png": "image/png",
    "image/png, application/json": "image/png",
    "application/json, image/png": "application/json",
    "*/*": "application/json",
    "*/*;q=0": "",
    "": "application/json",
    "text/html": "",
}


@pytest.mark.parametrize("accepted", ACCEPTED)
def test_the_answer_is_what_the_client_accepts_most(accepted: str, running: Running) -> None:
    answer = httpx.post(
        f"http://{running.http}/v1/models/tiny/predict",
        content=_picture(20, 20),
        headers={"Accept": accepted},
    )
    expected = ACCEPTED[accepted]
    assert answer.status_code == (200 if expected else 406)
    assert answer.headers["content-type"] == (expected or "application/json")


def test_pixels_at_work_never_exceed_the_budget_and_everyone_gets_through() -> None:
    budget, lock = PixelBudget(100), threading.Lock()
    at_work: list[int] = []
    sums: list[int] = []

    def work(pixels: int) -> None:
        with budget.held(pixels, Patience(20_000)):
            with lock:
                at_work.append(pixels)
                sums.append(sum(at_work))
            time.sleep(0.002)
            with lock:
                at_work.remove(pixels)

    rng = np.random.default_rng(2)
    with ThreadPoolExecutor(12) as threads:
        list(threads.map(work, [int(pixels) for pixels in rng.integers(1, 101, 80)]))
    assert len(sums) == 80
    assert 50 < max(sums) <= 100


def test_a_picture_larger_than_the_budget_waits_until_it_is_alone() -> None:
    budget = PixelBudget(100)
    order: list[str] = []

    def large() -> None:
        with budget.held(1000, Patience(20_000)):
            order.append("large")

    with budget.held(1, Patience(1000)):
        thread = threading.Thread(target=large)
        thread.start()
        time.sleep(0.05)
        # It is first in the row: what comes later waits behind it, and gives up in time.
        with pytest.raises(DeadlineError), budget.held(1, Patience(50)):
            order.append("small, too early")
        order.append("small")
    thread.join(10)
    assert order == ["small", "large"]
    with budget.held(100, Patience(1000)):
        order.append("all is back")
    assert order[-1] == "all is back"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="there is no /proc to read memory from")
def test_a_burst_of_large_pictures_takes_bounded_memory_and_gives_it_back(tiny_bundle: Bundle) -> None:
    # 24 MiB each when decoded, at most two at once; sixteen are 381.
    picture, each = _picture(2500, 2500, "JPEG"), 24
    with served(tiny_bundle.path, "--max-pixels", "6250000") as server:
        resting, peaks = [server.resident() / 2**20], []
        for _ in range(2):
            with ThreadPoolExecutor(16) as threads:
                url = f"{server.url}/v1/models/tiny/predict"
                answers = [threads.submit(httpx.post, url, content=picture, timeout=60) for _ in range(16)]
                highest = 0.0
                while not all(answer.done() for answer in answers):
                    highest = max(highest, server.resident() / 2**20)
                    time.sleep(0.005)
            assert [answer.result().status_code for answer in answers] == [200] * 16
            peaks.append(highest)
            resting.append(server.resident() / 2**20)
    assert max(peaks) < resting[0] + 4.5 * each, (resting, peaks)
    assert resting[1] < resting[0] + 1.5 * each, (resting, peaks)
    assert resting[2] < resting[1] + 0.5 * each, (resting, peaks)
