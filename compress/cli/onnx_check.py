"""``compress doctor --onnx FILE --target T``: whether the target's runtime takes an ONNX file, node by node."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from compress import targets
from compress.cli import screen
from compress.errors import BadInput, CheckFailed
from compress.serial import to_json


def run(file: str, target: str | None, dla: bool, as_json: bool) -> int:
    """Check a file and print each violation.

    Raises:
        BadInput: there is no such file, or no rules for the target.
        CheckFailed: the runtime would refuse the file.
    """
    if target is None:
        raise BadInput("doctor --onnx needs --target too: the device that the file is for, such as jetson")
    device = targets.load(target)
    if "tensorrt" not in device.runtimes:
        raise BadInput(
            f"--target {target}: only TensorRT's rules are known, and "
            f"{device.name} doesn't run TensorRT; leave --onnx out"
        )
    if dla and "dla" not in device.accelerators:
        raise BadInput(f"--dla: {device.name} has no DLA; leave it out, or take --target jetson-agx-orin")
    from compress.export import tensorrt_dla, tensorrt_rules

    model = tensorrt_rules.load(Path(file))
    found = (*tensorrt_rules.check(model), *(tensorrt_dla.fallbacks(model) if dla else ()))
    errors = [v for v in found if v.level == "error"]
    document: dict[str, Any] = {"ok": not errors, "file": file, "target": device.name, "violations": to_json(found)}
    if as_json:
        screen.emit(document)
    else:
        from compress.report.terminal import rows_table

        rows = [(v.level, v.node, v.found, v.fix, ", ".join(v.versions)) for v in found]
        said = f"{file}: TensorRT's documented rules are kept" if not errors else f"{file}: TensorRT would refuse it"
        tables = [rows_table(["", "node", "what", "do", "TensorRT"], rows)] if rows else []
        screen.show(*tables, said)
    if errors:
        raise CheckFailed(
            file,
            [f"{v.node}: {v.found}; {v.fix}" for v in errors[:1]]
            + ([f"and {len(errors) - 1} more"] if len(errors) > 1 else []),
        )
    return 0


__all__ = ["run"]
