"""A bundle on this machine: golden inputs, latency, size."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.errors import BadInput, CheckFailed
from compress.export import bundle as bundles
from compress.export import checked
from compress.export.manifest import MODEL, read_manifest
from compress.profiling import session, timer, verify

RUNTIME = "onnxruntime"


@dataclass(frozen=True)
class Profile:
    """What a device said of a bundle; None where unknown. ``document`` is what ``--json`` prints.

    Attributes:
        device: in words.
        runtime: what ran the network.
        golden_equal: the golden outputs came out, within the manifest's tolerance.
        latency_s, latency_p90_s: median and 90th percentile for one input.
        instructions: for one input, where the device counts them.
        macs: multiply-accumulates for one input.
        arena_bytes: working memory that the runtime sets aside.
        flash_bytes: size of the file that ran.
        conditions: threads, batch, versions.
    """

    device: str
    runtime: str
    golden_equal: bool
    latency_s: float | None
    latency_p90_s: float | None
    instructions: int | None
    macs: int | None
    arena_bytes: int | None
    flash_bytes: int
    conditions: dict[str, Any]


def profile(bundle: Path) -> Profile:
    """Run a bundle in ONNX Runtime on this machine.

    Raises:
        BadInput: there is no such folder.
        CheckFailed: the bundle is damaged, or its network can't be run.
    """
    if not bundle.is_dir():
        raise BadInput(f"bundle {bundle}: there is no such folder; give the folder of a bundle, such as RUN/bundle")
    manifest = read_manifest(bundle)
    wrong = bundles.damage(bundle, manifest) or [w for w in [checked.self_contained(bundle)] if w is not None]
    if wrong:
        raise CheckFailed(str(bundle), wrong)
    golden = verify.run_golden(bundle, manifest)
    path = bundle / MODEL
    run = session.runner(session.open_session(path))
    x = session.as_input(checked.golden(bundle)[0][:1])
    measured = timer.interleaved({RUNTIME: lambda: run(x)}, session.machine(), session.conditions())[RUNTIME]
    return Profile(
        device=measured.device,
        runtime=RUNTIME,
        golden_equal=golden.difference <= manifest.tolerance,
        latency_s=measured.latency_s,
        latency_p90_s=measured.latency_p90_s,
        instructions=None,
        macs=macs(path),
        arena_bytes=None,
        flash_bytes=path.stat().st_size,
        conditions={**measured.conditions, "runs": measured.runs},
    )


def macs(path: Path) -> int | None:
    """Multiply-accumulates for one input of an ONNX file's convolutions and matrix products.

    ``output elements x weights an output element reads``. None where a shape isn't known.
    """
    import onnx

    model = onnx.shape_inference.infer_shapes(onnx.load(path))
    graph = model.graph
    shapes = {each.name: tuple(each.dims) for each in graph.initializer}
    for value in (*graph.value_info, *graph.input, *graph.output):
        # The batch, the only dimension without a number, counts as one.
        shapes[value.name] = tuple(d.dim_value or 1 for d in value.type.tensor_type.shape.dim)
    total = 0
    for node in graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        weight, output = shapes.get(node.input[1]), shapes.get(node.output[0])
        if weight is None or output is None:
            return None
        total += _product(output) * _reads(node, weight)
    return total


def _reads(node: Any, weight: tuple[int, ...]) -> int:
    """The inputs that one output element sums over."""
    if node.op_type == "Conv":
        return _product(weight[1:])
    transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    return weight[-1] if transposed else weight[-2]


def _product(sizes: tuple[int, ...]) -> int:
    total = 1
    for size in sizes:
        total *= size
    return total


def document(profile: Profile) -> dict[str, Any]:
    """What ``compress profile --json`` prints."""
    from compress.serial import to_json

    found: dict[str, Any] = to_json(profile)
    return found


__all__ = ["Profile", "document", "macs", "profile"]
