"""Programs beside ONNX Runtime: the network as a whole, and operator by operator on equal inputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from compress.export.lowering import lower
from compress.export.lowering.builder import Value, default_axes
from compress.export.lowering.graph import QUANTIZE, read
from compress.export.lowering.lower import walked
from compress.integer import program as p
from compress.integer import reference

Array = NDArray[Any]
CUT = "__given"


def session(model: bytes, *, optimized: bool = False) -> Any:
    """ONNX Runtime on one thread; each node computed as the file says, unless ``optimized``."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def laid(tensor: p.Tensor, x: Array) -> Array:
    """One input of the file (batch of 1) as the program takes it, rounded to its grid."""
    axes = default_axes(x.shape)
    moved = np.transpose(x, [*axes, *(a for a in range(x.ndim) if a not in axes)]).reshape(tensor.shape)
    if tensor.dtype == "float32":
        return moved.astype(np.float32)
    ends = p.LIMITS[tensor.dtype]
    return reference.quantized(moved, tensor.scale, tensor.zero_point, *ends).astype(tensor.dtype)


def in_file(value: Value, held: Array) -> Array:
    """A tensor of the program in the file's shape."""
    return np.transpose(held, np.argsort(value.axes)).reshape(value.shape)


def fed(program: p.Program, inputs: list[Array]) -> dict[str, Array]:
    return {name: laid(program.tensors[name], x) for name, x in zip(program.inputs, inputs, strict=True)}


def computed(program: p.Program, inputs: list[Array]) -> list[Array]:
    """The program's outputs in the file's shapes, without the batch."""
    results = reference.run(program, fed(program, inputs))
    outputs = []
    for name in program.outputs:
        shape = program.file_shapes[name]
        axes = default_axes((1, *shape))
        held = results[name].reshape([(1, *shape)[a] for a in axes])
        outputs.append(np.transpose(held, np.argsort(axes)).reshape(shape))
    return outputs


def random_inputs(model: bytes, seed: int) -> list[Array]:
    """Normal numbers for each float input, batch 1."""
    g = np.random.default_rng(seed)
    found = []
    held = onnx.load_from_string(model).graph
    initializers = {t.name for t in held.initializer}
    for value in held.input:
        if value.name not in initializers:
            dims = [d.dim_value or 1 for d in value.type.tensor_type.shape.dim]
            found.append(g.normal(size=dims).astype(np.float32))
    return found


def difference(model: bytes, inputs: list[Array], program: p.Program | None = None, **how: Any) -> float:
    """The largest difference of any output from ONNX Runtime's, relative to the largest number there.

    Both call their ends alike.
    """
    program = lower(model) if program is None else program
    runtime = session(model, **how)
    names = [each.name for each in runtime.get_inputs()]
    assert program.inputs == tuple(names)
    assert program.outputs == tuple(each.name for each in runtime.get_outputs())
    wanted = runtime.run(None, dict(zip(names, inputs, strict=True)))
    worst = 0.0
    for want, got in zip(wanted, computed(program, inputs), strict=True):
        assert got.size == want.size, (got.shape, want.shape)
        gap = np.abs(want.reshape(got.shape).astype(np.float64) - got)
        worst = max(worst, float(gap.max() / max(np.abs(want).max(), 1e-9)))
    return worst


def step_differences(model: bytes, inputs: list[Array]) -> dict[str, int]:
    """For each 8-bit tensor that the file writes: by how many steps the program's integers differ from ONNX Runtime's
    on equal inputs, the largest difference.

    Every quantized value becomes an input of the file, fed with what the program computes there, so that each
    result rests on equal integers.
    """
    walk = walked(read(model))
    program = walk.builder.program()
    held = reference.run(program, fed(program, inputs), every=True)
    file = onnx.load_from_string(model)
    made = {name: node for node in file.graph.node for name in node.output}

    def quantized(name: str) -> bool:
        node = made.get(name)
        while node is not None and node.op_type == "Clip":
            node = made.get(node.input[0])
        return node is not None and node.op_type == QUANTIZE

    anchors = [name for name, value in walk.values.items() if quantized(name) and value.tensor in held]
    if not anchors:
        return {}
    feeds = {f"{name}{CUT}": in_file(walk.values[name], held[walk.values[name].tensor]) for name in anchors}
    for node in file.graph.node:
        for index, name in enumerate(node.input):
            if f"{name}{CUT}" in feeds:
                node.input[index] = f"{name}{CUT}"
    kinds = {name: onnx.helper.np_dtype_to_tensor_dtype(value.dtype) for name, value in feeds.items()}
    given = [onnx.helper.make_tensor_value_info(name, kinds[name], feeds[name].shape) for name in feeds]
    file.graph.input.extend(given)
    del file.graph.output[:]
    del file.graph.value_info[:]
    file.graph.output.extend(onnx.helper.make_tensor_value_info(name, kinds[f"{name}{CUT}"], None) for name in anchors)
    runtime = session(file.SerializeToString())
    initializers = {t.name for t in file.graph.initializer}
    ends = [v.name for v in file.graph.input if v.name not in feeds and v.name not in initializers]
    wanted = runtime.run(anchors, feeds | dict(zip(ends, inputs, strict=True)))
    return {
        name: int(np.abs(want.astype(np.int64) - feeds[f"{name}{CUT}"]).max())
        for name, want in zip(anchors, wanted, strict=True)
    }
