"""Quantizers in front of what only moves values or picks the largest, so that it is done on integers."""

from __future__ import annotations

from compress.export.lowering.graph import DEQUANTIZE, QUANTIZE, Graph, Node, scalar

COMMUTES = (
    *("Flatten", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Slice"),
    *("DepthToSpace", "SpaceToDepth", "MaxPool", "GlobalMaxPool"),
)
"""Operators after which rounding to one grid is the same as before them: rounding keeps the order of numbers."""


def hoisted(graph: Graph) -> None:
    """Move every QuantizeLinear in front of such operators, where nobody else reads what lies between."""
    while _one(graph):
        graph.index()


def _one(graph: Graph) -> bool:
    made = {name: node for node in graph.nodes for name in node.outputs}
    for node in graph.nodes:
        before = made.get(node.inputs[0])
        if node.op != QUANTIZE or before is None or before.op not in COMMUTES or len(before.outputs) > 1:
            continue
        source = made.get(before.inputs[0])
        alone = all(
            len(graph.users[name]) == 1 and name not in graph.outputs for name in (node.inputs[0], before.inputs[0])
        )
        if source is None or source.op == DEQUANTIZE or not alone or scalar(graph.constants, node.inputs[1]) is None:
            continue
        _swap(graph, before, node)
        return True
    return False


def _swap(graph: Graph, before: Node, quantize: Node) -> None:
    """``before`` then ``quantize`` becomes ``quantize`` then ``before``; names of the ends stay."""
    between, end = f"{before.inputs[0]}_quantized", quantize.outputs[0]
    if before.inputs[0] in graph.shapes:
        graph.shapes[between] = graph.shapes[before.inputs[0]]
    quantize.inputs[0], quantize.outputs[0] = before.inputs[0], between
    before.inputs[0], before.outputs[0] = between, end
    graph.nodes.remove(quantize)
    graph.nodes.insert(graph.nodes.index(before), quantize)
