"""Drop gathers that change no order, as those of a single window."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from saccade.engines.passes.constants import axis_of, constant, static_size


def drop_identity_gathers(model: ir.Model) -> int:
    """Gather by 0, 1, ..., n - 1 over an axis of n elements -> its input. Returns the number removed."""
    changed = 0
    for gather in list(model.graph):
        if gather.op_type != "Gather":
            continue
        table, index = gather.inputs[0], constant(gather.inputs[1])
        size = static_size(table, axis_of(gather))
        if table is None or index is None or size is None or index.shape != (size,):
            continue
        if not gather.outputs[0].is_graph_output() and np.array_equal(index, np.arange(size)):
            ir.convenience.replace_all_uses_with(gather.outputs[0], table)
            model.graph.remove(gather, safe=True)
            changed += 1
    return changed
