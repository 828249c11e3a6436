"""Reading the data and the network of a bundle that may be damaged or made to harm, without running anything in it."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

from compress.errors import CheckFailed
from compress.export.manifest import GOLDEN, MODEL


def golden(bundle: Path) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """The golden inputs and outputs, float32 (N, ...).

    Raises:
        CheckFailed: the file isn't what a bundle holds; nothing is unpickled.
    """
    path = bundle / GOLDEN
    try:
        with zipfile.ZipFile(path) as archive:
            # A bundle stores them uncompressed; anything larger than the file itself was made to exhaust memory.
            if sum(member.file_size for member in archive.infolist()) > path.stat().st_size:
                raise ValueError("it is compressed")
        with np.load(path, allow_pickle=False) as arrays:
            inputs, outputs = (np.asarray(arrays[name]) for name in ("inputs", "outputs"))
    except Exception as error:  # numpy and zipfile raise whatever the damage leads to
        said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise CheckFailed(str(bundle), [f"{GOLDEN} can't be read ({said})"]) from None
    for name, array in (("inputs", inputs), ("outputs", outputs)):
        if array.dtype != np.float32 or array.ndim < 1 or len(array) == 0 or not np.isfinite(array).all():
            raise CheckFailed(str(bundle), [f"{GOLDEN}: {name} must be finite float32 numbers"])
    if len(inputs) != len(outputs):
        raise CheckFailed(str(bundle), [f"{GOLDEN} holds {len(inputs)} inputs and {len(outputs)} outputs"])
    return inputs, outputs


def self_contained(bundle: Path) -> str | None:
    """Why the bundle's ONNX file must not be loaded: it is damaged, or reads other files; None if it may be."""
    import onnx

    try:
        model = onnx.load(bundle / MODEL, load_external_data=False)
    except Exception as error:  # protobuf raises whatever the damage leads to
        return f"{MODEL} can't be read ({' '.join(str(error).split())[:160]})"
    graphs = [model.graph]
    while graphs:
        graph = graphs.pop()
        tensors = [*graph.initializer, *(s.values for s in graph.sparse_initializer)]
        for node in graph.node:
            for attribute in node.attribute:
                graphs += [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]
                tensors += [*attribute.tensors, *([attribute.t] if attribute.HasField("t") else [])]
        if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in tensors):
            return f"{MODEL} reads weights from other files"
    return None


__all__ = ["golden", "self_contained"]
