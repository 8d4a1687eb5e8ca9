"""What TensorRT's ONNX parser makes of a node: plugin, built-in operator, local function or error.

The order is that of the parser of TensorRT 10.15 and later. It knows nothing of tensors;
`tests/engines/test_tensorrt_parser.py` holds it to the real parser, that of TensorRT for RTX 1.7.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Literal

import onnx

Kind = Literal["plugin", "builtin", "function", "error"]


@dataclass(frozen=True, slots=True)
class Creator:
    """A plugin creator as TensorRT's registry knows it."""

    name: str
    version: str = "1"
    namespace: str = ""


@dataclass(frozen=True, slots=True)
class Parser:
    """What a parser could bind nodes to.

    importers: names of the operators that it implements. functions: names of the model's local functions.
    creators: registered plugins. plugin_override: the flag ENABLE_PLUGIN_OVERRIDE.
    """

    importers: Collection[str] = frozenset()
    functions: Collection[str] = frozenset()
    creators: Collection[Creator] = field(default=frozenset())
    plugin_override: bool = False


@dataclass(frozen=True, slots=True)
class Binding:
    """The outcome for one node, and the rule that decided."""

    kind: Kind
    reason: str


def bind(node: onnx.NodeProto, parser: Parser) -> Binding:
    """Follow the parser's order for `node`. The node's domain matters in the last step only.

    1. A plugin, for a node with `plugin_namespace` or under ENABLE_PLUGIN_OVERRIDE, when a creator of the
       node's op_type, `plugin_version` (default "1") and `plugin_namespace` (default "") is registered.
    2. The built-in operator of that op_type.
    3. The local function of that name: its body is inlined.
    4. A plugin as in 1, then one whose namespace is the node's domain: whatever attributes or flag say.
       (NVIDIA's sources of about 10.15 read as sparing nodes with either; the real parser does not.)
    """
    attributes = {a.name: a.s.decode() for a in node.attribute if a.type == onnx.AttributeProto.STRING}
    version = attributes.get("plugin_version", "1")
    asked = "plugin_namespace" in attributes or parser.plugin_override
    wanted = Creator(node.op_type, version, attributes.get("plugin_namespace", ""))
    if asked and wanted in parser.creators:
        return Binding("plugin", f"plugin {_spelt(wanted)} is registered")
    if node.op_type in parser.importers:
        return Binding("builtin", "built-in operator")
    if node.op_type in parser.functions:
        return Binding("function", "body of the local function is inlined")
    for creator in (wanted, Creator(node.op_type, version, node.domain)):
        if creator in parser.creators:
            return Binding("plugin", f"plugin {_spelt(creator)} is registered")
    return Binding("error", f"no built-in operator, local function or registered plugin {_spelt(wanted)}")


def _spelt(creator: Creator) -> str:
    return f"{creator.namespace}::{creator.name} version {creator.version}".removeprefix("::")
