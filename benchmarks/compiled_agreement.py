"""Compiled libraries beside the integer reference, bit for bit, and beside ONNX Runtime, by accuracy.

All 10,000 CIFAR-10 test images run through the x86 libraries, 200 through those of other processors under QEMU. The
files are ours for ResNet-20 and ONNX Runtime's own quantizer's.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import cifar10_ptq, common
from compress.export.compiled import compile_file
from compress.export.kernels import isa
from compress.export.kernels.isa import Isa
from compress.export.library import counting, emulate, toolchain
from compress.export.library.loader import Library
from compress.integer import program as p
from compress.integer import reference

NETWORK = "resnet20"
CALIBRATION, FEW, BATCH = 1024, 200, 50
ZERO_POINT, SYMMETRIC, PEER = "compress, zero point", "compress, symmetric", "onnxruntime quantize_static"
LIBRARIES: tuple[tuple[str, str, Isa, int | None], ...] = (
    (ZERO_POINT, "x86-64, AVX-512 VNNI", isa.X86_VNNI, None),
    (ZERO_POINT, "x86-64, AVX2", isa.X86_AVX2, None),
    (PEER, "x86-64, AVX-512 VNNI", isa.X86_VNNI, None),
    (ZERO_POINT, "Cortex-A72, NEON", isa.CORTEX_A72, FEW),
    (ZERO_POINT, "Cortex-A76, dot product", isa.CORTEX_A76, FEW),
    (ZERO_POINT, "Cortex-M7", isa.CORTEX_M7, FEW),
    (ZERO_POINT, "Cortex-M4", isa.CORTEX_M4, FEW),
    (SYMMETRIC, "RV64GC", isa.RV64_LINUX, FEW),
    (SYMMETRIC, "Cortex-M7", isa.CORTEX_M7, FEW),
)


def measure() -> list[common.Row]:
    import torch

    from compress import data as datasets
    from compress import models
    from compress.export import onnx as interchange
    from compress.profiling.session import open_session, runner
    from compress.quantize import quantize
    from compress.types import Plan, State

    weights = next((common.data_dir() or Path()).glob(f"weights/cifar10-akamaster/{NETWORK}-*.th"))
    loaded = models.load(NETWORK, weights=str(weights))
    model = loaded.model
    with common.cifar10() as cifar10:
        data = datasets.load(f"cifar10:{cifar10}", mean=loaded.mean, std=loaded.std)
        images = data.train.inputs(CALIBRATION, torch.Generator().manual_seed(0))
        batches = [(x.numpy(), y.numpy()) for x, y in data.evaluate.batches(BATCH)]
    test, labels = (np.concatenate(each) for each in zip(*batches, strict=True))
    rows: list[common.Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        files = {name: folder / f"{index}.onnx" for index, name in enumerate((ZERO_POINT, SYMMETRIC, PEER))}
        for name, target in ((ZERO_POINT, "cpu"), (SYMMETRIC, "visionfive-2")):
            made = quantize(model, images, weight_bits=8, target=target, method="uniform")
            interchange.export(made.state, images[:2], files[name])
        interchange.export(State(model, Plan()), images[:2], folder / "float.onnx")
        cifar10_ptq.quantize_static(folder / "float.onnx", files[PEER], images, "QUInt8", "MinMax")
        runtime = {}
        for name, path in files.items():
            run = runner(open_session(path))
            runtime[name] = np.concatenate([run(part) for part in np.array_split(test, len(test) // BATCH)])
        wanted: dict[tuple[str, bool], NDArray[Any]] = {}
        for name, title, instructions, count in LIBRARIES:
            rows.append(_row(files[name], name, title, instructions, test[:count], labels, runtime[name], wanted))
            print(rows[-1], flush=True)
    return rows


def _row(
    path: Path,
    name: str,
    title: str,
    instructions: Isa,
    images: NDArray[np.float32],
    labels: NDArray[Any],
    runtime: NDArray[np.float32],
    wanted: dict[tuple[str, bool], NDArray[Any]],
) -> common.Row:
    with tempfile.TemporaryDirectory() as temporary:
        compiled = compile_file(path, instructions, Path(temporary))
        program, built = compiled.program, compiled.library
        (end,), (result,) = built.interface.inputs, built.interface.outputs
        raw = end.to_library(images)
        if toolchain.native(instructions) and built.linked_path is not None:
            with Library(built.linked_path) as library:
                found = library.run_raw([raw])[0]
        elif toolchain.hosted(instructions):
            found = emulate.run_raw(built, [raw])[0]
        else:
            found = counting.run(built, {end.name: images}).outputs[result.name]
    key = (name, instructions.signed)
    if key not in wanted or len(wanted[key]) < len(images):
        wanted[key] = np.stack([_reference(program, x) for x in raw])
    correct = wanted[key][: len(images)]
    n = len(images)
    classes, said = found.reshape(n, -1).argmax(1), runtime[:n].argmax(1)
    return {
        "network": NETWORK,
        "file": name,
        "library": title,
        "images": n,
        "equal_images": int((found.reshape(n, -1) == correct.reshape(n, -1)).all(1).sum()),
        "accuracy_percent": round(100 * float((classes == labels[:n]).mean()), 2),
        "onnxruntime_accuracy_percent": round(100 * float((said == labels[:n]).mean()), 2),
        "same_class_percent": round(100 * float((classes == said).mean()), 2),
    }


def _reference(program: p.Program, x: NDArray[Any]) -> NDArray[Any]:
    (name,), (result,) = program.inputs, program.outputs
    return reference.run(program, {name: x})[result]


def section(document: Mapping[str, Any]) -> str:
    rows = document["rows"]
    table = common.markdown_table(
        ["file", "library", "images", "equal to the reference", "accuracy, %", "in ONNX Runtime, %", "same class, %"],
        (
            [
                row["file"],
                row["library"],
                common.shown(row["images"]),
                common.shown(row["equal_images"]),
                common.shown(row["accuracy_percent"], 2),
                common.shown(row["onnxruntime_accuracy_percent"], 2),
                common.shown(row["same_class_percent"], 2),
            ]
            for row in rows
        ),
        text_columns=2,
    )
    exact = all(row["equal_images"] == row["images"] for row in rows)
    gap = max(abs(row["accuracy_percent"] - row["onnxruntime_accuracy_percent"]) for row in rows if row["images"] > FEW)
    return (
        f"ResNet-20's 8-bit files compiled for each processor. Libraries of other processors ran under QEMU. "
        f"{'Every output of every library equals the integer reference' if exact else 'Not every output equals'}. "
        f"ONNX Runtime requantizes in float: over all test images its accuracy differs by at most {gap:.2f} points.\n\n"
        f"{table}"
    )


BENCHMARK = common.Benchmark(
    name="compiled_agreement",
    title="compiled libraries beside the integer reference and ONNX Runtime",
    needs=(
        common.data("cifar10", "CIFAR-10"),
        common.data("weights/cifar10-akamaster", "ResNet weights for CIFAR-10"),
        common.program("qemu-aarch64-static", "emulator"),
        common.program("qemu-system-arm", "emulator"),
    ),
    packages=("torch", "numpy", "onnxruntime", "apache-tvm"),
    measure=measure,
    section=section,
    minutes=12,
)

if __name__ == "__main__":
    common.main(BENCHMARK)
