"""What is in a bundle: card, files, graphs with their operators, and whether TensorRT would take them.

Counting nodes needs the onnx package (`saccade[export]`); without it the graphs are listed by size alone.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saccade import bundle as bundles
from saccade.models.card import Card

if TYPE_CHECKING:
    from saccade.engines.readiness import Readiness


@dataclass(frozen=True, slots=True)
class Graph:
    """One graph of a bundle. `operators`: nodes per operator, functions not expanded; None without onnx.

    readiness: NVIDIA's operator table node by node, for the source graph; None for derived ones.
    """

    variant: str
    path: str
    bytes: int
    operators: Mapping[str, int] | None
    readiness: Readiness | None

    @property
    def nodes(self) -> int | None:
        return None if self.operators is None else sum(self.operators.values())

    def to_json(self) -> dict[str, Any]:
        readiness = None if self.readiness is None else self.readiness.to_json()
        return {**dataclasses.asdict(self), "nodes": self.nodes, "readiness": readiness}


@dataclass(frozen=True, slots=True)
class Inspection:
    """The bundle's description and contents; `files` maps a path inside the bundle to its bytes."""

    path: Path
    name: str
    task: str
    card: Card
    untrained: bool
    provenance: Mapping[str, Any]
    files: Mapping[str, int]
    graphs: tuple[Graph, ...]

    def to_json(self) -> dict[str, Any]:
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        graphs = [graph.to_json() for graph in self.graphs]
        return {**plain, "path": str(self.path), "card": self.card.to_json(), "graphs": graphs}


def inspect(name_or_path: str | Path) -> Inspection:
    """Read and check the bundle, and look into its graphs."""
    bundle = bundles.read(bundles.resolve(name_or_path))
    return Inspection(
        path=bundle.path,
        name=bundle.name,
        task=bundle.task,
        card=bundle.card,
        untrained=bundle.untrained,
        provenance=bundle.provenance,
        files={name: entry["bytes"] for name, entry in bundle.files.items()},
        graphs=tuple(
            _graph(variant, path, bundle.path)
            for graph in bundle.graphs.values()
            for variant, path in graph.files.items()
        ),
    )


def _graph(variant: str, path: Path, root: Path) -> Graph:
    operators = _operators(path)
    readiness = None
    # The derived graphs are for one engine each; TensorRT is given the source graph.
    if variant == "source" and operators is not None:
        from saccade.engines.readiness import check

        readiness = check(path)
    return Graph(variant, str(path.relative_to(root)), path.stat().st_size, operators, readiness)


def _operators(path: Path) -> dict[str, int] | None:
    try:
        import onnx
    except ModuleNotFoundError:
        return None
    graph = onnx.load(path, load_external_data=False).graph
    names = (f"{node.domain}::{node.op_type}" if node.domain else node.op_type for node in graph.node)
    return dict(Counter(names).most_common())
