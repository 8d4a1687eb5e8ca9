"""Ray Serve and Ray Data over two nodes of a cluster on this machine: the predictor's answers, scaled."""

from __future__ import annotations

import asyncio
import io
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http
import yaml
from PIL import Image
from tests import every_task, triton_server

import saccade
from saccade.errors import EngineError, InputError, MissingDependency, UsageError
from saccade.serving import ray_data, ray_serve
from saccade.serving.settings import ServerSettings
from saccade.serving.triton import RepositoryOptions, write_repository

EXAMPLE = Path(__file__).resolve().parents[3] / "deploy" / "ray" / "serve.yaml"
MODEL = "digits-stvit"
# Ray's own: it imports what its dependencies call old, and leaves sockets to the end of the process.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore::{kind}")
    for kind in (
        "DeprecationWarning",
        "FutureWarning",
        "ResourceWarning",
        "pytest.PytestUnraisableExceptionWarning",
    )
]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({}, "nothing to serve"),
        ({"bundles": ","}, "nothing to serve"),
        ({"bundles": "a b"}, "cannot name a model"),
        ({"bundles": MODEL, "threds": "1"}, "unknown threds; there are bundles, "),
        ({"bundles": MODEL, "http_port": "80"}, "unknown http_port"),
        ({"bundles": 5}, "bundles is 5; it must be a text with commas, or a list of texts"),
        ({"bundles": [MODEL, 5]}, "it must be a text with commas, or a list of texts"),
        ({"bundles": {MODEL: MODEL}}, "it must be a text with commas, or a list of texts"),
        ({"bundles": MODEL, "max_rows": "0"}, "max_rows is 0"),
        ({"bundles": MODEL, "max_delay_ms": "Infinity"}, "max_delay_ms is inf"),
        ({"bundles": [MODEL], "threads": -1}, "threads is -1"),
        ({"bundles": [MODEL], "threads": "two"}, "threads is 'two'; it must be a whole number"),
        ({"bundles": [MODEL], "threads": "[" * 100_000}, "it must be a whole number"),
        ({"bundles": MODEL, "max_body_bytes": "64MB"}, "max_body_bytes is '64MB'"),
        ({"bundles": MODEL, "control": "no"}, "control is 'no'; it must be true or false"),
        ({"bundles": MODEL, "token": 1234}, "the token must be text"),
        ({"bundles": MODEL, "engine": ["onnxruntime"]}, "it must be text"),
    ],
)
def test_refused_arguments(args: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ray_serve.app(args)


def test_texts_say_numbers_but_where_text_is_meant() -> None:
    texts = {"threads": "2", "max_delay_ms": "1.5", "control": "false", "token": "1234"}
    bundles, settings = ray_serve._read({"bundles": f"{MODEL},other={MODEL}", **texts})
    assert bundles == [MODEL, f"other={MODEL}"]
    assert (settings.threads, settings.batching.max_delay_ms) == (2, 1.5)
    assert (settings.control, settings.token) == (False, "1234")


def test_ray_is_asked_for_when_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependency, match=r"pip install 'saccade\[ray\]'"):
        ray_serve.app({"bundles": MODEL})
    with pytest.raises(MissingDependency, match=r"pip install 'saccade\[ray\]'"):
        ray_data.read_pictures("pictures")


def test_a_replica_is_healthy_while_its_models_are_ready() -> None:
    """Without Ray: what it does with the builder and the class, in its order."""
    replica = ray_serve.Replica()
    replica.app = ray_serve._builder([MODEL], ServerSettings(threads=1))()
    with pytest.raises(EngineError, match="not ready"):
        replica.check_health()

    async def live() -> None:
        async with replica.app.router.lifespan_context(replica.app):
            replica.check_health()

    asyncio.run(live())


def test_a_worker_answers_rows(files: dict[str, bytes]) -> None:
    options = ray_data.DatasetOptions(engine="onnxruntime", column="picture")
    worker = ray_data.Worker(MODEL, options)
    batch = {"path": np.array(list(files), object), "picture": np.array(list(files.values()), object)}
    answered = worker(batch)
    assert list(answered) == ["path", "answer", "error"]
    with saccade.load(MODEL, "onnxruntime", threads=1) as classify:
        expected = [each.to_json() for each in classify(list(files.values())[:-1])]
    assert [json.loads(text) for text in answered["answer"][:-1]] == expected
    assert answered["answer"][-1] == ""
    assert "not a picture" in answered["error"][-1]
    only_broken = worker({name: values[-1:] for name, values in batch.items()})
    assert only_broken["answer"].tolist() == [""]


def test_whatever_a_cell_holds_is_a_row(files: dict[str, bytes], tmp_path: Path) -> None:
    """The last is text that names a file which could be read."""
    picture = files["0.jpg"]
    (tmp_path / "0.jpg").write_bytes(picture)
    odd = [None, math.nan, 7, {"bytes": picture}, [picture], picture.hex(), b"", str(tmp_path / "0.jpg")]
    cells = np.empty(len(odd) + 2, object)
    cells[:] = [picture, *odd, bytearray(picture)]
    worker = ray_data.Worker(MODEL, ray_data.DatasetOptions(engine="onnxruntime"))
    answered = worker({"bytes": cells})
    assert answered["answer"][0] == answered["answer"][-1] != ""
    assert answered["answer"][1:-1].tolist() == [""] * len(odd)
    assert [bool(error) for error in answered["error"]] == [False, *(True for _ in odd), False]
    assert "it is a NoneType" in answered["error"][1]
    nothing = worker({"bytes": np.array([math.nan, math.nan])})  # how Ray gives a column of nulls
    assert (nothing["answer"].tolist(), "float" in nothing["error"][0]) == (["", ""], True)


class Narrow:
    """An engine that takes nothing wider than 32 pixels, as TensorRT's plans have limits."""

    def __init__(self, engine: Any) -> None:
        self.inputs, self.outputs, self._engine = engine.inputs, engine.outputs, engine

    def run(self, feeds: Any) -> Any:
        if feeds["image"].shape[-1] > 32:
            raise InputError(f"input 'image' cannot have shape {feeds['image'].shape}")
        return self._engine.run(feeds)


def test_a_picture_that_the_engine_cannot_take_is_a_row(tmp_path: Path) -> None:
    bundle = every_task.write("semantic_segmentation", tmp_path / "wide").path
    worker = ray_data.Worker(str(bundle), ray_data.DatasetOptions(engine="onnxruntime"))
    worker._predict.engine = Narrow(worker._predict.engine)
    files = []
    for size in ((20, 90), (64, 48), (22, 90)):
        file = io.BytesIO()
        Image.new("RGB", size).save(file, "PNG")
        files.append(file.getvalue())
    answered = worker({"bytes": np.array(files, object)})
    assert [bool(text) for text in answered["answer"]] == [True, False, True]
    assert [bool(text) for text in answered["error"]] == [False, True, False]
    assert "cannot have shape" in answered["error"][1]


def test_a_worker_knows_its_classes(tmp_path: Path) -> None:
    bundle = every_task.write("zero_shot", tmp_path / "zoo").path
    options = ray_data.DatasetOptions(engine="onnxruntime", prompts=every_task.PROMPTS)
    answered = ray_data.Worker(str(bundle), options)({"bytes": np.array(every_task.pictures()[:1], object)})
    assert tuple(scores(json.loads(answered["answer"][0]))) == every_task.PROMPTS


def test_options_that_cannot_be() -> None:
    with pytest.raises(UsageError, match="at least 1"):
        ray_data.DatasetOptions(workers=0)


@pytest.mark.slow
def test_the_example_is_a_configuration_of_ray_serve() -> None:
    from ray.serve.schema import ServeDeploySchema

    config = ServeDeploySchema.model_validate(yaml.safe_load(EXAMPLE.read_text()))
    (application,) = config.applications
    target = ray_serve.app(application.args)
    (deployment,) = application.deployments
    assert deployment.name == target._bound_deployment.name


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a cluster of two nodes, to which this process is connected."""
    import ray
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 2, "object_store_memory": 100 * 2**20}
    nodes = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    try:
        nodes.add_node(**node)
        ray.init(address=nodes.address, log_to_driver=False, logging_level="ERROR")
        assert len([each for each in ray.nodes() if each["Alive"]]) == 2
        yield nodes.address
    finally:
        ray.shutdown()
        nodes.shutdown()


@pytest.fixture(scope="module")
def served(cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The example's application, with one replica for each node and one to begin with."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = yaml.safe_load(EXAMPLE.read_text())
    config["proxy_location"] = "HeadOnly"  # two nodes of one machine cannot share a port
    config["http_options"] |= {"host": "127.0.0.1", "port": port}
    config["applications"][0]["args"] |= {"threads": 1, "max_delay_ms": 0.0}
    (deployment,) = config["applications"][0]["deployments"]
    deployment["max_replicas_per_node"] = 1
    deployment["autoscaling_config"] |= {
        **{"min_replicas": 1, "max_replicas": 2, "target_ongoing_requests": 1},
        **{"upscale_delay_s": 0, "metrics_interval_s": 1, "look_back_period_s": 2},
    }
    folder = tmp_path_factory.mktemp("ray")
    (folder / "serve.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "ray.serve.scripts", "run", "serve.yaml"]
    variables = {**os.environ, "RAY_ADDRESS": cluster, "OMP_NUM_THREADS": "1"}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, env=variables, stdout=log, stderr=log)
        try:
            wait_for(lambda: answers(f"http://127.0.0.1:{port}/v2/health/ready"), 120, folder / "log")
            yield f"127.0.0.1:{port}"
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)


def wait_for(met: Any, seconds: float, log: Path) -> None:
    until = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < until, log.read_text()[-4000:]
        time.sleep(0.5)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def predict(address: str, file: bytes) -> dict[str, float]:
    """Scores by label, from the endpoint for pictures."""
    url = f"http://{address}/v1/models/{MODEL}/predict?top=10"
    request = urllib.request.Request(url, data=file, headers={"Content-Type": "image/jpeg"})
    with urllib.request.urlopen(request, timeout=60) as response:
        return scores(json.load(response))


def scores(answer: dict[str, Any]) -> dict[str, float]:
    return {row["label"]: row["score"] for row in answer["predictions"]}


@pytest.mark.slow
def test_ray_triton_and_the_predictor_give_one_answer(served: str, tmp_path: Path) -> None:
    files = every_task.pictures()
    with saccade.load(MODEL, "onnxruntime", threads=1) as classify:
        expected = [scores(classify(file).to_json()) for file in files]
    assert [predict(served, file) for file in files] == expected

    write_repository([f"digits={MODEL}"], tmp_path / "models", RepositoryOptions(engine="python"))
    with (
        triton_server.serving(tmp_path / "models", tmp_path / "log") as address,
        tritonclient.http.InferenceServerClient(address, network_timeout=60) as client,
    ):
        for file, wanted in zip(files, expected, strict=True):
            picture = tritonclient.http.InferInput("image", [1, 1], "BYTES")
            picture.set_data_from_numpy(np.array([[file]], np.object_))
            text = client.infer("digits", [picture]).as_numpy("json")[0, 0]
            assert scores(json.loads(text)) == wanted


@pytest.mark.slow
def test_tensors_pass_unchanged(served: str) -> None:
    image = np.random.default_rng(0).standard_normal((1, 3, 224, 224)).astype(np.float32)
    tensor = tritonclient.http.InferInput("image", image.shape, "FP32")
    tensor.set_data_from_numpy(image)
    with (
        tritonclient.http.InferenceServerClient(served, network_timeout=60) as client,
        saccade.load(MODEL, "onnxruntime", threads=1) as classify,
    ):
        given = client.infer(MODEL, [tensor]).as_numpy("logits")
        np.testing.assert_array_equal(given, classify.engine.run({"image": image})["logits"])


def running() -> int:
    """How many replicas there are."""
    from ray import serve

    (deployment,) = serve.status().applications["saccade"].deployments.values()
    return int(deployment.replica_states.get("RUNNING", 0))


@pytest.mark.slow
def test_a_replica_that_dies_is_replaced(served: str) -> None:
    import ray

    def replicas() -> set[str]:
        actors = ray.util.list_named_actors(all_namespaces=True)
        return {each["name"] for each in actors if each["name"].startswith("SERVE_REPLICA::saccade")}

    dead, *others = replicas()  # two, where the tests before were load enough
    ray.kill(ray.get_actor(dead, namespace="serve"))
    until = time.monotonic() + 90
    while running() <= len(others) or dead in replicas():
        assert time.monotonic() < until
        time.sleep(0.5)
    file = every_task.pictures()[0]
    with saccade.load(MODEL, "onnxruntime", threads=1) as classify:
        assert predict(served, file) == scores(classify(file).to_json())


@pytest.mark.slow
def test_load_brings_a_replica_on_the_other_node(served: str) -> None:
    file = every_task.pictures()[0]
    with saccade.load(MODEL, "onnxruntime", threads=1) as classify:
        expected = scores(classify(file).to_json())
    until = time.monotonic() + 90
    with ThreadPoolExecutor(8) as pool:
        while running() < 2:  # it began with one; one on each node: the configuration allows no more
            assert time.monotonic() < until
            for found in pool.map(lambda _: predict(served, file), range(32)):
                # Requests share runs, whose size may change the last bits.
                assert found == pytest.approx(expected, rel=1e-5, abs=1e-7)


def check_rows(rows: list[dict[str, Any]], files: dict[str, bytes]) -> None:
    """Every file has its row: the predictor's answer, or why there is none."""
    found = {Path(row["path"]).name: row for row in rows}
    assert set(found) == set(files)
    with saccade.load(MODEL, "onnxruntime", threads=1) as classify:
        for name, content in files.items():
            if name == "broken.png":
                assert found[name]["answer"] == ""
                assert "not a picture" in found[name]["error"]
            else:
                assert json.loads(found[name]["answer"]) == classify(content).to_json()
                assert found[name]["error"] == ""


@pytest.fixture
def files() -> dict[str, bytes]:
    return {f"{n}.jpg": file for n, file in enumerate(every_task.pictures())} | {"broken.png": b"nothing"}


# One picture per run, so that answers can be compared to the bit.
SINGLE = ray_data.DatasetOptions(workers=2, batch_size=1, engine="onnxruntime")


@pytest.mark.slow
def test_a_folder_becomes_parquet(cluster: str, files: dict[str, bytes], tmp_path: Path) -> None:
    import pyarrow.parquet

    for name, content in {**files, "notes.txt": b"no picture"}.items():
        (tmp_path / name).write_bytes(content)
    pictures = ray_data.read_pictures(str(tmp_path))
    ray_data.predict_dataset(MODEL, pictures, SINGLE).write_parquet(str(tmp_path / "out"))
    check_rows(pyarrow.parquet.read_table(tmp_path / "out").to_pylist(), files)


@pytest.mark.slow
def test_parquet_becomes_json_lines(cluster: str, files: dict[str, bytes], tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet
    import ray.data

    columns = {"path": list(files), "picture": list(files.values()), "taken": list(range(len(files)))}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "in.parquet")
    options = ray_data.DatasetOptions(workers=2, batch_size=1, engine="onnxruntime", column="picture")
    dataset = ray_data.predict_dataset(MODEL, ray.data.read_parquet(str(tmp_path / "in.parquet")), options)
    dataset.write_json(str(tmp_path / "out"))
    lines = [line for part in (tmp_path / "out").iterdir() for line in part.read_text().splitlines()]
    rows = [json.loads(line) for line in lines]
    check_rows(rows, files)
    assert sorted(row["taken"] for row in rows) == list(range(len(files)))
