"""The OpenAPI description of what the server offers, with the models it serves."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from saccade.serving.options import options_for
from saccade.serving.settings import ServerSettings
from saccade.serving.tensors import DATATYPES

__all__ = ["openapi"]

_ERRORS = {
    "400": "a mistake in the request",
    "401": "the token is missing or wrong",
    "403": "the server does not do that, or not for a page of another site",
    "404": "no such model",
    "406": "the answer has no form that is accepted",
    "408": "the body did not arrive in time",
    "413": "the body is too large",
    "422": "the picture or tensor cannot be used",
    "503": "too much is waiting: try again after Retry-After seconds",
    "504": "no answer within the time",
}


def openapi(models: Sequence[dict[str, Any]], settings: ServerSettings) -> dict[str, Any]:
    """The description as JSON types. One predict path for each model, with the options that it takes."""
    paths: dict[str, Any] = {
        "/v2/health/live": _get("Whether the server runs"),
        "/v2/health/ready": _get("Whether every model is ready"),
        "/v2": _get("Name, version and extensions of the server"),
        "/v1/models": _get("Models that take pictures"),
        "/v2/models/stats": _get("Statistics of all models"),
        "/v2/models/{name}": _get("Inputs and outputs of a model", model=True),
        "/v2/models/{name}/ready": _get("Whether a model is ready", model=True),
        "/v2/models/{name}/config": _get("Batch size and shapes of a model", model=True),
        "/v2/models/{name}/stats": _get("Statistics of a model", model=True),
        "/v2/models/{name}/infer": _infer(),
        "/v2/repository/index": {
            "post": _operation("Every model and its state", body={"ready": {"type": "boolean"}})
        },
        "/metrics": _get("Prometheus metrics"),
    }
    if settings.control:
        for verb, summary in {"load": "Load or reload a bundle", "unload": "Unload a bundle"}.items():
            body = {"parameters": {"type": "object"}}
            operation = _operation(summary, model=True, body=body)
            paths[f"/v2/repository/models/{{name}}/{verb}"] = {"post": operation}
    if settings.shared_memory:
        paths |= _shared_memory()
    for model in models:
        paths[f"/v1/models/{model['name']}/predict"] = {"post": _predict(model)}
    described: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "Saccade",
            "version": version("saccade"),
            "description": "Predictors of vision models: pictures in, answers out; and the Open Inference "
            "Protocol for raw tensors.",
        },
        "paths": paths,
        "components": {"schemas": {"Error": _object({"error": {"type": "string"}}, ["error"])}},
    }
    if settings.token is not None:
        described["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        described["security"] = [{"token": []}]
    return described


def _get(summary: str, *, model: bool = False) -> dict[str, Any]:
    return {"get": _operation(summary, model=model)}


def _operation(summary: str, *, model: bool = False, body: dict[str, Any] | None = None) -> dict[str, Any]:
    operation: dict[str, Any] = {"summary": summary, "responses": _responses("The answer")}
    if model:
        operation["parameters"] = [_NAME]
    if body is not None:
        operation["requestBody"] = {"content": {"application/json": {"schema": _object(body, [])}}}
    return operation


def _shared_memory() -> dict[str, Any]:
    whole = {"type": "integer", "minimum": 0}
    region = {"key": {"type": "string"}, "offset": whole, "byte_size": whole}
    path = "/v2/systemsharedmemory"
    found: dict[str, Any] = {
        f"{path}/status": _get("Every region"),
        f"{path}/region/{{name}}/status": _get("One region", model=True),
        f"{path}/region/{{name}}/register": {
            "post": _operation("Read and write an object in /dev/shm", model=True, body=region)
        },
        f"{path}/region/{{name}}/unregister": {"post": _operation("Forget a region", model=True)},
        f"{path}/unregister": {"post": _operation("Forget every region")},
    }
    return found


def _predict(model: dict[str, Any]) -> dict[str, Any]:
    options = options_for(model["task"])
    parameters: list[dict[str, Any]] = [
        {
            "name": name,
            "in": "query",
            "description": option.help,
            "schema": {"type": "array", "items": dict(option.schema)} if option.many else dict(option.schema),
        }
        for name, option in options.items()
    ]
    picture = {"type": "string", "format": "binary"}
    form: dict[str, Any] = {"file": picture} | {each["name"]: each["schema"] for each in parameters}
    responses = _responses("What the model sees in the picture")
    if model["drawable"]:
        responses["200"]["content"]["image/png"] = {"schema": picture}
    return {
        "summary": f"Predict with {model['name']} ({model['task'].replace('_', ' ')})",
        "operationId": f"predict_{model['name']}",
        "parameters": [*parameters, _TIMEOUT],
        "requestBody": {
            "required": True,
            "content": {
                "image/*": {"schema": picture},
                "multipart/form-data": {"schema": _object(form, ["file"])},
            },
        },
        "responses": responses,
    }


def _infer() -> dict[str, Any]:
    tensor = {
        "name": {"type": "string", "maxLength": 256},
        "datatype": {"enum": list(DATATYPES)},
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
        "data": {"type": "array"},
        "parameters": {"type": "object"},
    }
    output = {"name": {"type": "string", "maxLength": 256}, "parameters": {"type": "object"}}
    body = _object(
        {
            "id": {"type": "string", "maxLength": 256},
            "parameters": {"type": "object"},
            "inputs": {
                "type": "array",
                "minItems": 1,
                "items": _object(tensor, ["name", "datatype", "shape"]),
            },
            "outputs": {"type": "array", "minItems": 1, "items": _object(output, ["name"])},
        },
        ["inputs"],
    )
    return {
        "post": {
            "summary": "Infer raw tensors: in the JSON, or behind it (Inference-Header-Content-Length)",
            "parameters": [_NAME],
            "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
            "responses": _responses("The outputs"),
        }
    }


def _responses(good: str) -> dict[str, Any]:
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    found: dict[str, Any] = {"200": {"description": good, "content": {"application/json": {"schema": {}}}}}
    return found | {code: {"description": text, "content": error} for code, text in _ERRORS.items()}


def _object(properties: dict[str, Any], required: Sequence[str]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required)}


_NAME = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
_TIMEOUT = {
    "name": "timeout_ms",
    "in": "query",
    "description": "How long the client waits.",
    "schema": {"type": "integer", "minimum": 1, "maximum": 999_999_999},
}
