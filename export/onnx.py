"""The interchange file: ONNX with explicit quantize/dequantize pairs and packed sub-byte weights.

torch.onnx writes the graph; the two operators of :mod:`compress.graph.qdq` become QuantizeLinear and
DequantizeLinear. Weights of 4 and 2 bits are stored packed, as INT4 and INT2 initializers, behind a Cast
to INT8. ONNX Runtime folds that Cast when it loads the file, so the layer still runs its int8 kernel: a
DequantizeLinear that reads INT4 directly would leave the convolution in float, several times slower.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compress.export import onnx_forms
from compress.export.torch_exporter import brief
from compress.graph.program import as_program
from compress.graph.qdq import insert
from compress.graph.trace import Network, quiet, trace
from compress.serial import write_atomic
from compress.types import Signedness, State

FILE = "model.onnx"
OPSET = 21
"""The first opset with INT4; files with 2-bit weights need 25."""
OPSET_INT2 = 25
IR_VERSION = {OPSET: 10, OPSET_INT2: 13}


def export(
    state: State, example: Any, path: Path, network: Network | None = None, weights: Signedness = "signed"
) -> str:
    """Write ``state`` as one ONNX file and return its SHA-256.

    Args:
        state: a network, quantized or not; its weights lie on their grids where it is.
        example: one input batch, float32 (N, ...); the file takes any N unless the network fixes it.
        path: where to; written at once or not at all.
        network: the trace of the state's model, if there is one; it isn't changed.
        weights: how 8-bit weights are stored; see :func:`compress.export.onnxruntime.weight_storage`.

    Raises:
        BadInput: the network holds an operator that ONNX can't express; it is named.
    """
    content = serialize(state, example, network, weights)
    write_atomic(path, content)
    return hashlib.sha256(content).hexdigest()


def serialize(state: State, example: Any, network: Network | None = None, weights: Signedness = "signed") -> bytes:
    """The bytes of the ONNX file; see :func:`export`."""
    import torch

    from compress.errors import BadInput

    bits = dict[str, int]()
    if state.quantization is None:
        program = trace(state.model, (example,)).program  # one of its own, which torch.onnx uses up
    else:
        network = network or trace(state.model, (example,))
        program = as_program(insert(network, state.quantization), network)
        bits = {name: grid.bits for name, grid in state.quantization.weights.items()}
    try:
        with quiet(), brief():
            written = torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                input_names=["input"],
                output_names=["output"],
                custom_translation_table=dict(_translations(program)),
            )
    except Exception as error:
        raise BadInput(
            f"the network can't be written as ONNX: {_reason(error)}; replace that operator in the network"
        ) from error
    assert written is not None
    return _finished(written.model_proto, bits, weights)


def stored(content: bytes, weights: Signedness) -> bytes:
    """An ONNX file of 8-bit weights that are signed, with its weights as they are to be stored."""
    import onnx

    if weights == "signed":
        return content
    model = onnx.load_from_string(content)
    onnx_forms.unsigned_weights(model.graph)
    return bytes(model.SerializeToString(deterministic=True))


def _reason(error: BaseException) -> str:
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(cause).__name__


def _translations(program: Any) -> Mapping[Any, Any]:
    """Our operators, and some of torch's, as ONNX ones.

    Annotations are what onnxscript tells attributes from inputs by.
    """
    import numpy as np
    import onnx_ir as ir
    import torch
    from onnxscript import opset21

    op: Any = opset21  # its annotations are for functions that are compiled, ours are traced

    def pair(x, scale: float, zero_point: int, bits: int, signed: bool):  # type: ignore[no-untyped-def]  # traced
        low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
        kind = np.int8 if signed else np.uint8
        step = op.Constant(value=ir.tensor(np.array(scale, np.float32)))
        zero = op.Constant(value=ir.tensor(np.array(zero_point, kind)))
        if bits < 8:
            # The stored type saturates at 8 bits only, so narrower grids are clipped to their ends first.
            ends = [np.array((end - zero_point) * np.float32(scale), np.float32) for end in (low, high)]
            x = op.Clip(x, *(op.Constant(value=ir.tensor(end)) for end in ends))
        return op.DequantizeLinear(op.QuantizeLinear(x, step, zero), step, zero)

    def weight(q, scale, axis: int):  # type: ignore[no-untyped-def]  # traced
        return op.DequantizeLinear(q, scale, axis=axis)

    def bound(value, x):  # type: ignore[no-untyped-def]  # traced
        number = isinstance(value, (int, float))
        return op.Constant(value=ir.tensor(np.array(value, x.dtype.numpy()))) if number else value

    def clip(x, min=None, max=None):  # type: ignore[no-untyped-def]  # noqa: A002  # traced; the operator's names
        # torch's own makes a Min or Max of a clip with one end, which no runtime puts into the kernel in front.
        low, high = (bound(each, x) for each in (min, max))  # type: ignore[no-untyped-call]
        if all(each is None or each.shape is None or len(each.shape) == 0 for each in (low, high)):
            return op.Clip(x, low, high)
        x = x if low is None else op.Max(x, low)
        return x if high is None else op.Min(x, high)

    def clip_above(x, max):  # type: ignore[no-untyped-def]  # noqa: A002  # traced; the operator's names
        return clip(x, None, max)  # type: ignore[no-untyped-call]

    def batch_norm(x, weight, bias, mean, var, training: bool, momentum: float, eps: float, cudnn_enabled: bool):  # type: ignore[no-untyped-def]  # traced
        return op.BatchNormalization(x, weight, bias, mean, var, epsilon=eps)

    norms = [node.args for node in program.graph.nodes if node.target is torch.ops.aten.batch_norm.default]
    # torch.onnx has one for what batch normalization is taken apart into, and that takes a trace of the whole network.
    whole = all(None not in arguments[1:5] and not arguments[5] for arguments in norms)
    return ({torch.ops.aten.batch_norm.default: batch_norm} if whole else {}) | {
        torch.ops.aten.clamp.default: clip,
        torch.ops.aten.clamp.Tensor: clip,
        torch.ops.aten.clamp_min.default: clip,
        torch.ops.aten.clamp_max.default: clip_above,
        torch.ops.compress.quantize_dequantize.default: pair,
        torch.ops.compress.dequantize.default: weight,
    }


def _finished(model: Any, bits: Mapping[str, int], weights: Signedness) -> bytes:
    """Pack sub-byte weights, take out what differs from run to run or from machine to machine."""
    from compress import __version__

    graph = model.graph
    narrow = {f"{name}_quantized": width for name, width in bits.items() if width <= 4}
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    used = OPSET
    casts = []
    for name, width in narrow.items():
        if name in initializers:
            packed = _pack(initializers[name], 4 if width > 2 else 2)
            used = max(used, OPSET if width > 2 else OPSET_INT2)
            graph.initializer.remove(initializers[name])
            graph.initializer.append(packed)
            casts.append(_widen(graph, name))
    for cast in reversed(casts):
        graph.node.insert(0, cast)
    onnx_forms.global_pooling(graph, initializers)
    onnx_forms.padded_convolutions(graph, initializers)
    onnx_forms.padded_channels(graph, initializers)
    onnx_forms.plain_moves(graph, initializers)
    if weights == "unsigned":
        onnx_forms.unsigned_weights(graph)
    onnx_forms.weight_zeros(graph)
    for node in graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in [*graph.value_info, *graph.input, *graph.output]:
        del value.metadata_props[:]
    del graph.metadata_props[:]
    del model.metadata_props[:]
    graph.doc_string = model.doc_string = ""
    model.producer_name, model.producer_version = "compress", __version__
    for opset in model.opset_import:
        if opset.domain == "":
            opset.version = used
    model.ir_version = IR_VERSION[used]
    keep = [function for function in model.functions if any(node.op_type == function.name for node in graph.node)]
    del model.functions[:]
    model.functions.extend(keep)
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def _pack(tensor: Any, width: int) -> Any:
    """An int8 initializer as INT4 or INT2 of the same values: lowest bits first, as ONNX lays them out."""
    import numpy as np
    import onnx
    from onnx import numpy_helper

    values = numpy_helper.to_array(tensor)
    per_byte = 8 // width
    flat = values.ravel().astype(np.uint8) & (2**width - 1)
    flat = np.pad(flat, (0, -len(flat) % per_byte)).reshape(-1, per_byte)
    shifts = np.arange(per_byte, dtype=np.uint8) * width
    content = np.bitwise_or.reduce(flat << shifts, axis=1).astype(np.uint8).tobytes()
    kind = onnx.TensorProto.INT4 if width == 4 else onnx.TensorProto.INT2
    return onnx.helper.make_tensor(f"{tensor.name}_int{width}", kind, values.shape, content, raw=True)


def _widen(graph: Any, name: str) -> Any:
    """A Cast that gives the packed initializer back under its old name."""
    import onnx

    packed = graph.initializer[-1].name
    return onnx.helper.make_node("Cast", [packed], [name], name=f"widen_{name}", to=onnx.TensorProto.INT8)
