"""MLPerf Tiny's int8 ResNet-8 compiled for microcontrollers: instructions, working memory, flash, agreement.

Instructions are counted by QEMU (``-icount``), one run of the library's ``model_run``; a count is not a time, and a
core takes one to two cycles for some of them. Weights of fewer bits are the 8-bit ones rounded: sizes and counts
depend on nothing else.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import common, mlperf_tiny
from compress.export.kernels import backends, isa
from compress.export.kernels.isa import Isa
from compress.export.library import building, counting
from compress.integer import reference
from compress.integer.program import Program
from compress.integer.signedness import with_signedness

FOLDER = "mlperf-tiny/ic"
MODEL = f"{FOLDER}/pretrainedResnet_quant.tflite"
SAMPLES = f"{FOLDER}/perf_samples_idxs.npy"
CORES: Mapping[str, Isa] = {
    "Cortex-M4": isa.CORTEX_M4,
    "Cortex-M7": isa.CORTEX_M7,
    "Cortex-M33": isa.CORTEX_M33,
    "Cortex-M55, DSP instructions only": isa.CORTEX_M55,
    "RV32IMC": isa.RV32_BARE,
}
BITS = (8, 4, 2, 1)
ALL_IMAGES = ("Cortex-M4", "Cortex-M7")
FEW = 8
"""Images of the rows that aren't checked on all 200 of MLPerf's."""
PUBLISHED_CYCLES = {"Cortex-M7": 11.4e6, "Cortex-M4": 19.8e6}
"""MLPerf Tiny v1.2, the best entries on such cores."""
MICRO_ARENA_BYTES, MICRO_MODEL_BYTES = 100 * 1024, 98_496
"""What MLPerf Tiny's reference submission gives TensorFlow Lite Micro: its arena, with the network's input and output
in it, and the model's file, which stays in flash (``kTensorArenaSize`` and ``ic_model_quant_data.cc`` in
mlcommons/tiny, benchmark/reference_submissions/image_classification)."""


def measure() -> list[common.Row]:
    folder = common.data_dir()
    assert folder is not None
    network = mlperf_tiny.program(folder / MODEL)
    images = _images(np.load(folder / SAMPLES))
    programs = {bits: mlperf_tiny.with_bits(network, bits) for bits in BITS}
    rows = []
    for core, target in CORES.items():
        for bits in BITS if target.family == "cortex-m" else (8,):
            few = images if bits == 8 and core in ALL_IMAGES else images[:FEW]
            rows.append(_row(core, target, bits, programs[bits], few))
            print(rows[-1], flush=True)
    return rows


def _images(samples: NDArray[Any]) -> NDArray[np.float32]:
    """(N, 3, 32, 32) pixels from 0 to 255 of the CIFAR-10 test images that MLPerf Tiny runs."""
    with common.cifar10() as folder:
        raw = np.fromfile(folder / "cifar-10-batches-bin" / "test_batch.bin", np.uint8).reshape(-1, 3073)
    return raw[samples.astype(np.int64), 1:].reshape(-1, 3, 32, 32).astype(np.float32)


def _row(core: str, target: Isa, bits: int, program: Program, images: NDArray[np.float32]) -> common.Row:
    code = backends.assemble(program, target)
    with tempfile.TemporaryDirectory() as folder:
        built = building.build(code, target, Path(folder), file_shapes=program.file_shapes)
        counted = counting.run(built, {program.inputs[0]: images})
    signed = with_signedness(program, target.signed)
    (end,), (result,) = built.interface.inputs, built.interface.outputs
    wanted = [reference.run(signed, {end.name: image})[result.name] for image in end.to_library(images)]
    exact = np.array_equal(counted.outputs[result.name], result.from_library(np.stack(wanted)))
    return {
        "network": "ResNet-8",
        "core": core,
        "weight_bits": bits,
        "macs": program.macs,
        "instructions": counted.instructions,
        "instructions_per_mac": round(counted.instructions / program.macs, 4),
        "arena_bytes": built.arena_bytes,
        "lower_bound_bytes": built.lower_bound_bytes,
        "tensors_bytes": _tensors_bytes(program),
        "stack_bytes": built.stack_bytes,
        "flash_bytes": built.flash_bytes,
        "code_bytes": built.code_bytes,
        "constant_bytes": built.weight_bytes,
        "images": len(images),
        "bit_exact": exact,
        "published_cycles": PUBLISHED_CYCLES.get(core) if bits == 8 else None,
    }


def _tensors_bytes(program: Program) -> int:
    """The most that an interpreter holds which runs operator by operator, each into memory of its own: tensors alone,
    input and output of the network left out."""
    ends = {*program.inputs, *program.outputs}
    last = {name: index for index, op in enumerate(program.ops) for name in op.inputs}
    alive: set[str] = set()
    most = 0
    for index, op in enumerate(program.ops):
        alive |= {op.output} - ends
        most = max(most, sum(program.tensors[name].bytes for name in alive))
        alive -= {name for name in alive if last.get(name, -1) <= index}
    return most


def section(document: Mapping[str, Any]) -> str:
    rows = document["rows"]
    eight = {row["core"]: row for row in rows if row["weight_bits"] == 8}
    table = common.markdown_table(
        ["core", "weights, bits", "instructions", "per MAC", "arena, bytes", "flash, bytes", "of it code",
         "flash, of 8 bits", "instructions, of 8 bits"],
        [
            [
                row["core"],
                common.shown(row["weight_bits"]),
                common.shown(row["instructions"]),
                common.shown(row["instructions_per_mac"], 3),
                common.shown(row["arena_bytes"]),
                common.shown(row["flash_bytes"]),
                common.shown(row["code_bytes"]),
                common.shown(row["flash_bytes"] / eight[row["core"]]["flash_bytes"], 3),
                common.shown(row["instructions"] / eight[row["core"]]["instructions"], 3),
            ]
            for row in rows
        ],
        text_columns=1,
    )  # fmt: skip
    exact = sum(row["bit_exact"] for row in rows)
    most = max(row["images"] for row in rows)
    cycles = ", ".join(f"{core} {figure / 1e6:.1f} million" for core, figure in PUBLISHED_CYCLES.items())
    return (
        "MLPerf Tiny's image classification network with its own int8 weights, compiled to a library with no runtime "
        f"and run by QEMU. {exact} of {len(rows)} builds equal the integer reference bit for bit, on up to {most} of "
        "the images that MLPerf runs. Instructions are counted, requantization and all else included; they are no "
        "cycles. "
        f"MLPerf Tiny v1.2's best entries take, in cycles: {cycles}. The arena excludes input and output; "
        f"tensors alone take {common.shown(rows[0]['tensors_bytes'])} bytes where each operator writes into memory of "
        "its own, as in an interpreter. MLPerf Tiny's reference submission reserves an arena of "
        f"{common.shown(MICRO_ARENA_BYTES)} bytes for TensorFlow Lite Micro, input and output (3,082 bytes) included, "
        f"and keeps the model's file of {common.shown(MICRO_MODEL_BYTES)} bytes in flash, beside the interpreter and "
        "its kernels; here flash holds code, constants and driver, and nothing else is needed. "
        "Weights of fewer than 8 bits are rounded ones, for their size and count "
        f"only.\n\n{table}\n"
    )


BENCHMARK = common.Benchmark(
    name="compiled_cortex_m",
    title="compiled for microcontrollers: instructions, memory, agreement",
    needs=(
        common.data(MODEL, "MLPerf Tiny's ResNet-8"),
        common.data("cifar10", "CIFAR-10"),
        common.package("ai-edge-litert", "ai_edge_litert"),
        common.program("qemu-system-arm", "emulator"),
        common.program("qemu-system-riscv32", "emulator"),
        common.program("arm-none-eabi-gcc", "compiler"),
        common.program("riscv64-unknown-elf-gcc", "compiler"),
    ),
    packages=("apache-tvm", "ai-edge-litert", "numpy"),
    measure=measure,
    section=section,
    minutes=3,
)

if __name__ == "__main__":
    common.main(BENCHMARK)
