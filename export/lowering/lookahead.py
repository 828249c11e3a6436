"""Operators that only clip, which whatever stands before them takes in."""

from __future__ import annotations

import numpy as np

from compress.export.lowering.graph import Graph, Node, scalar


def clip_ends(graph: Graph, node: Node) -> tuple[float, float] | None:
    """(lowest, highest) that an operator which only clips lets through; None for other operators."""
    if node.op == "Relu":
        return 0.0, np.inf
    if node.op != "Clip":
        return None
    ends = []
    for index, (key, default) in enumerate((("min", -np.inf), ("max", np.inf)), start=1):
        name = node.input(index)
        found = scalar(graph.constants, name) if name else float(node.attributes.get(key, default))
        if found is None:
            return None
        ends.append(found)
    return ends[0], ends[1]
