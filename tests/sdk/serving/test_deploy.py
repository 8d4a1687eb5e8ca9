"""Images and manifests: linted, checked against published schemas, in step with the server they start."""

from __future__ import annotations

import copy
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import typer
import yaml

from saccade.batching import Limits
from saccade.cli import app
from saccade.serving.http import create_app
from saccade.serving.repository import Repository
from saccade.serving.settings import ServerSettings

ROOT = Path(__file__).resolve().parents[3]
DEPLOY = ROOT / "deploy"
IMAGES = sorted(DEPLOY.glob("*.Dockerfile"))
# The newest whose schemas are published, and the oldest whose pods can sleep before they stop.
KUBERNETES = ("1.37", "1.33")


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """(instruction, rest) of every line, continued ones joined."""
    text = re.sub(r"^#.*\n", "", dockerfile.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in text.splitlines() if line.strip()]


def last_stage(dockerfile: Path) -> list[tuple[str, str]]:
    lines = instructions(dockerfile)
    start = max(index for index, (word, _) in enumerate(lines) if word == "FROM")
    return lines[start:]


def parsed(arguments: list[str]) -> Any:
    """The options that `saccade ARGUMENTS` is started with; an unknown one is an error."""
    group = typer.main.get_command(app)
    context = group.make_context("saccade", list(arguments))
    name, command, options = group.resolve_command(context, [*context._protected_args, *context.args])
    assert name == "serve"
    return command.make_context(name, options, parent=context).params


def entry(dockerfile: Path) -> list[str]:
    """The exec form of ENTRYPOINT: a shell between would keep SIGTERM to itself."""
    (words,) = [yaml.safe_load(rest) for word, rest in last_stage(dockerfile) if word == "ENTRYPOINT"]
    assert isinstance(words, list)
    return words


@pytest.mark.parametrize("image", IMAGES, ids=lambda path: path.name)
def test_images_are_linted(image: Path) -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    ran = subprocess.run([hadolint, image], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout


@pytest.mark.parametrize("image", IMAGES, ids=lambda path: path.name)
def test_the_last_stage_holds_what_runs_and_no_more(image: Path) -> None:
    bases = [rest.split()[0] for word, rest in instructions(image) if word == "FROM"]
    assert all(re.fullmatch(r"\S+:\d+\.\d+\.\d+-\S+", base) for base in bases), bases
    stage = last_stage(image)
    runs = " ".join(rest for word, rest in stage if word == "RUN")
    assert not re.search(r"\bpip\b|gcc|build-essential|-dev\b|python3-venv", runs)
    (user,) = [rest for word, rest in stage if word == "USER"]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
    (health,) = [rest for word, rest in stage if word == "HEALTHCHECK"]
    assert "/v2/health/live" in health
    assert re.search(r"CMD \[", health)


@pytest.mark.parametrize("image", IMAGES, ids=lambda path: path.name)
def test_images_start_the_server(image: Path) -> None:
    (command,) = [yaml.safe_load(rest) for word, rest in last_stage(image) if word == "CMD"]
    program, *arguments = [*entry(image), *command]
    assert program == "saccade"
    assert parsed(arguments)["host"] == "0.0.0.0"
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (installed,) = re.findall(r'"\.\[([a-z,]+)\]"', image.read_text())
    assert set(installed.split(",")) <= set(extras)


def test_the_builds_context_holds_what_the_wheel_is_made_of() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"}
    folders = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-dir"]
    assert {Path(folder).parts[0] for folder in folders.values()} <= allowed
    assert {"pyproject.toml", "README.md", "LICENSE"} <= allowed


# --- Kubernetes -----------------------------------------------------------------------------------------


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / "kubernetes" / name).read_text()))


def by_kind(name: str) -> dict[str, Any]:
    return {each["kind"]: each for each in documents(name)}


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("document", documents("server.yaml"), ids=lambda each: each["kind"])
def test_manifests_are_what_kubernetes_takes(document: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(document, version, strict=True)


def test_the_schemas_see_a_mistake() -> None:
    wrong = copy.deepcopy(by_kind("server.yaml")["Deployment"])
    wrong["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, KUBERNETES[0], strict=True)


def test_the_parts_fit_together() -> None:
    parts = by_kind("server.yaml")
    template = parts["Deployment"]["spec"]["template"]
    labels = template["metadata"]["labels"]
    assert parts["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert parts["Service"]["spec"]["selector"] == labels
    assert parts["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    target = parts["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", parts["Deployment"]["metadata"]["name"])
    # A voluntary disruption needs a pod that can go.
    least = parts["HorizontalPodAutoscaler"]["spec"]["minReplicas"]
    assert parts["PodDisruptionBudget"]["spec"]["minAvailable"] < least
    ports = {port["name"] for port in template["spec"]["containers"][0]["ports"]}
    assert {port["targetPort"] for port in parts["Service"]["spec"]["ports"]} == ports


def pods() -> dict[str, dict[str, Any]]:
    return {
        "server": by_kind("server.yaml")["Deployment"]["spec"]["template"]["spec"],
        "kserve": documents("kserve.yaml")[0]["spec"]["predictor"],
    }


@pytest.fixture(scope="module")
def routes() -> set[str]:
    served = create_app(Repository({"digits": "digits-stvit"}, ServerSettings()), ServerSettings())
    return {getattr(route, "path", "") for route in served.routes}


@pytest.mark.parametrize("pod", pods().values(), ids=pods())
def test_pods_ask_the_server_for_what_it_has(pod: dict[str, Any], routes: set[str]) -> None:
    (container,) = pod["containers"]
    options = parsed([*entry(DEPLOY / "cpu.Dockerfile")[1:], *container["args"]])
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert options["http_port"] in ports.values()
    for kind in ("liveness", "readiness"):
        probe = container[f"{kind}Probe"]["httpGet"]
        assert probe["path"] in routes
        assert ports.get(probe["port"], probe["port"]) == options["http_port"]
    sleep = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    assert pod["terminationGracePeriodSeconds"] > sleep + options["drain"]


@pytest.mark.parametrize("pod", pods().values(), ids=pods())
def test_pods_have_no_rights_that_they_do_not_use(pod: dict[str, Any]) -> None:
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    (user,) = [rest for word, rest in last_stage(DEPLOY / "cpu.Dockerfile") if word == "USER"]
    assert str(pod["securityContext"]["runAsUser"]) == user.partition(":")[0]
    assert {"cpu", "memory"} <= set(container["resources"]["requests"])
    assert "memory" in container["resources"]["limits"]


# What a predictor of KServe has besides a pod: V1beta1PredictorSpec of the Python package kserve 0.21.0, less
# the fields of a PodSpec and those that name another framework.
KSERVE = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "annotations": {"type": "object"},
        "autoScaling": {"type": "object"},
        "batcher": {"type": "object"},
        "canaryTrafficPercent": {"type": "integer"},
        "containerConcurrency": {"type": "integer"},
        "deploymentStrategy": {"type": "object"},
        "labels": {"type": "object"},
        "logger": {"type": "object"},
        "maxReplicas": {"type": "integer"},
        "minReplicas": {"type": "integer"},
        "model": {"type": "object"},
        "name": {"type": "string"},
        "scaleMetric": {"enum": ["cpu", "memory", "concurrency", "rps"]},
        "scaleMetricType": {"enum": ["Utilization", "AverageValue"]},
        "scaleTarget": {"type": "integer"},
        "storageContainerName": {"type": "string"},
        "storageUris": {"type": "array"},
        "timeout": {"type": "integer"},
        "workerSpec": {"type": "object"},
    },
}


def split(predictor: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """KServe's own fields, and a Pod of the others."""
    own = {name: value for name, value in predictor.items() if name in KSERVE["properties"]}
    rest = {name: value for name, value in predictor.items() if name not in own}
    return own, {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "predictor"}, "spec": rest}


def test_the_inference_service_is_what_kserve_takes() -> None:
    (service,) = documents("kserve.yaml")
    assert (service["apiVersion"], service["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    assert set(service) == {"apiVersion", "kind", "metadata", "spec"}
    assert set(service["spec"]) == {"predictor"}
    own, pod = split(service["spec"]["predictor"])
    jsonschema.validate(own, KSERVE)
    for version in KUBERNETES:
        kubernetes_validate.validate(pod, version, strict=True)
    # KServe puts the storage's content where its container of this name looks.
    (container,) = pod["spec"]["containers"]
    assert container["name"] == "kserve-container"
    assert container["args"][0] == "/mnt/models"
    assert {"name", "value"} == set(container["env"][0])


def test_pods_are_scaled_before_requests_are_refused() -> None:
    """What Ray sends to one replica at once fits its queue."""
    (application,) = yaml.safe_load((DEPLOY / "ray" / "serve.yaml").read_text())["applications"]
    (deployment,) = application["deployments"]
    limits = Limits(**{k: v for k, v in application["args"].items() if k in Limits.__dataclass_fields__})
    assert deployment["max_ongoing_requests"] <= limits.max_queue_rows
    assert deployment["autoscaling_config"]["target_ongoing_requests"] < deployment["max_ongoing_requests"]


def test_comments_show_commands_that_name_these_files() -> None:
    for path in (*IMAGES, *DEPLOY.glob("*/*.yaml")):
        lines = [line.removeprefix("#").strip() for line in path.read_text().splitlines() if line[:1] == "#"]
        words = [word for line in lines for word in shlex.split(line.replace("'", "")) if "deploy/" in word]
        assert str(path.relative_to(ROOT)) in words
