"""What hypothesis sends to a server: values that a schema allows, and some that it does not."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def from_schema(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values that a schema of the OpenAPI description allows, and sometimes ones that it does not."""
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    kind = schema.get("type")
    if kind == "object":
        properties = {name: from_schema(each) | JSON for name, each in schema.get("properties", {}).items()}
        required = {name: properties.pop(name) for name in schema.get("required", ()) if name in properties}
        return st.fixed_dictionaries(required, optional=properties)
    if kind == "array":
        return st.lists(
            from_schema(schema["items"]) if "items" in schema else st.floats(width=32), max_size=4
        )
    simple: dict[Any, st.SearchStrategy[Any]] = {
        "string": st.text(max_size=8) | st.sampled_from(["image", "logits", "FP32"]),
        "integer": st.integers(0, 40),
        "boolean": st.booleans(),
    }
    return simple.get(kind, JSON)


FUZZ = settings(
    max_examples=60,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
