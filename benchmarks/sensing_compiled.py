"""The built-in reconstruction networks in 8 bits, compiled: an image of 256x256 on x86, one of 64x64 on a Cortex-M7.

Weights are those that ship. On one core of this processor the library and ONNX Runtime take turns with the same Q/DQ
file; on the microcontroller QEMU counts the instructions of one run (``-icount``), which are no cycles. Both measure
and recover: the patterns are in the library, as sums without products.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import common, reconstruction, sensing

SIDE, SMALL_SIDE = 256, 64
"""Of the image, on x86 and on the microcontroller."""

COMPARED, COUNTED = 2, 1
"""Images whose outputs are compared with the integer reference, bit for bit."""

ROUNDS, ATTEMPTS, WAIT_S = 20, 3, 20.0
X86, MICRO = "x86, one core", "Cortex-M7"
OURS, PEER = "compress", "onnxruntime"
_KEYS = (
    "ratio",
    "device",
    "runtime",
    "image",
    "macs",
    "latency_ms",
    "speedup",
    "instructions",
    "instructions_per_mac",
    "arena_bytes",
    "stack_bytes",
    "flash_bytes",
    "compared_images",
    "different_images",
    "other_work_percent",
)


def size(side: int) -> str:
    return f"{side}x{side}"


def row(**known: Any) -> common.Row:
    return {**dict.fromkeys(_KEYS), **known}


def exported(ratio: float, folder: Path) -> dict[int, Path]:
    """The Q/DQ files of the shipped network of that ratio with 8 bits, by the side of their image."""
    import torch

    from compress import models
    from compress.export import onnx as interchange

    state = sensing.rounded(models.load("sensing", sensing=ratio).model, 8.0).state
    files = {}
    for side in (SIDE, SMALL_SIDE):
        files[side] = folder / f"{side}.onnx"
        interchange.export(state, torch.zeros(2, 1, side, side), files[side])
    return files


def pictures(side: int, count: int) -> NDArray[np.float32]:
    """(count, 1, side, side): the upper left corners of Set11's first images."""
    large = [image for image in reconstruction.test_images() if min(image.shape) >= side]
    return np.stack([image[None, :side, :side].numpy() for image in large[:count]])


def differing(program: Any, images: NDArray[np.float32], outputs: NDArray[np.float32]) -> int:
    """How many images' outputs aren't the integer reference's to the bit."""
    from compress.export.compiled import reference_golden

    golden = reference_golden(program, images)
    assert golden is not None
    (wanted,) = golden.outputs.values()
    return int((outputs != wanted).reshape(len(images), -1).any(1).sum())


def on_this_processor(ratio: float, path: Path, folder: Path) -> list[common.Row]:
    """The library's row, and ONNX Runtime's."""
    from compress.export.compiled import compile_file
    from compress.export.kernels import backends
    from compress.export.library.loader import Library
    from compress.profiling import session, timer

    isa = backends.host()
    assert isa is not None
    made = compile_file(path, isa, folder)
    images = pictures(SIDE, COMPARED)
    with Library(made.library.linked_path, 1) as library:
        different = differing(made.program, images, library.run(images))
        (end,) = library.interface.inputs
        jobs: dict[str, Callable[[], Any]] = {
            OURS: library.prepared([end.to_library(images[:1])[0]]),
            PEER: partial(session.runner(session.open_session(path, 1)), images[:1]),
        }
        found, other_work = common.quietly(
            partial(timer.interleaved, jobs, session.machine(), {}, rounds=ROUNDS), ATTEMPTS, WAIT_S
        )
    built, ours = made.library, found[OURS].latency_s
    about = {
        "ratio": ratio,
        "device": X86,
        "image": size(SIDE),
        "macs": made.program.macs,
        "other_work_percent": other_work,
    }
    return [
        row(
            **about,
            runtime=OURS,
            latency_ms=round(ours * 1e3, 3),
            arena_bytes=built.arena_bytes,
            compared_images=len(images),
            different_images=different,
        ),
        row(
            **about,
            runtime=PEER,
            latency_ms=round(found[PEER].latency_s * 1e3, 3),
            speedup=round(found[PEER].latency_s / ours, 2),
        ),
    ]


def on_a_microcontroller(ratio: float, path: Path, folder: Path) -> common.Row:
    """Instructions, memory and flash."""
    from compress.export.compiled import compile_file
    from compress.export.kernels import isa
    from compress.export.library import counting

    made = compile_file(path, isa.CORTEX_M7, folder)
    images = pictures(SMALL_SIDE, COUNTED)
    (end,), (result,) = made.library.interface.inputs, made.library.interface.outputs
    counted = counting.run(made.library, {end.name: images})
    return row(
        ratio=ratio,
        device=MICRO,
        runtime=OURS,
        image=size(SMALL_SIDE),
        macs=made.program.macs,
        instructions=counted.instructions,
        instructions_per_mac=round(counted.instructions / made.program.macs, 3),
        arena_bytes=made.library.arena_bytes,
        stack_bytes=made.library.stack_bytes,
        flash_bytes=made.library.flash_bytes,
        compared_images=len(images),
        different_images=differing(made.program, images, counted.outputs[result.name]),
    )


def measure() -> list[common.Row]:
    rows: list[common.Row] = []
    for ratio in reconstruction.RATIOS:
        with tempfile.TemporaryDirectory() as made:
            folder = Path(made)
            files = exported(ratio, folder)
            new = on_this_processor(ratio, files[SIDE], folder / "x86")
            new.append(on_a_microcontroller(ratio, files[SMALL_SIDE], folder / "m7"))
        common.print_rows(new)
        rows += new
    return rows


def section(document: Mapping[str, Any]) -> str:
    rows = document["rows"]
    timed = [r for r in rows if r["device"] == X86 and r["runtime"] == OURS]
    peers = {r["ratio"]: r for r in rows if r["runtime"] == PEER}
    counted = [r for r in rows if r["device"] == MICRO]
    compared = [r for r in rows if r["compared_images"]]
    exact = sum(r["compared_images"] - r["different_images"] for r in compared)
    busy = max(r["other_work_percent"] or 0.0 for r in rows)
    x86 = common.markdown_table(
        ["ratio", "MMACs", "compress, ms", "onnxruntime, ms", "times as fast", "arena, bytes"],
        [
            [
                f"{100 * r['ratio']:g}%",
                common.shown(r["macs"] / 1e6, 0),
                common.shown(r["latency_ms"], 2),
                common.shown(peers[r["ratio"]]["latency_ms"], 2),
                common.shown(peers[r["ratio"]]["speedup"], 2),
                common.shown(r["arena_bytes"]),
            ]
            for r in timed
        ],
        text_columns=1,
    )
    micro = common.markdown_table(
        ["ratio", "MMACs", "instructions", "per MAC", "arena, bytes", "flash, bytes"],
        [
            [
                f"{100 * r['ratio']:g}%",
                common.shown(r["macs"] / 1e6, 1),
                common.shown(r["instructions"]),
                common.shown(r["instructions_per_mac"], 3),
                common.shown(r["arena_bytes"]),
                common.shown(r["flash_bytes"]),
            ]
            for r in counted
        ],
        text_columns=1,
    )
    return (
        f"Measuring and recovering one image by the shipped networks in 8 bits. {exact} of "
        f"{sum(r['compared_images'] for r in compared)} compared images equal the integer reference bit for bit. "
        f"An image of {size(SIDE)} on one core of x86, the library and ONNX Runtime in turns on the same Q/DQ file "
        f"(others used at most {busy:.1f}% of the cores meanwhile):\n\n{x86}\n"
        f"An image of {size(SMALL_SIDE)} on a Cortex-M7, instructions counted by QEMU, which are no cycles:"
        f"\n\n{micro}"
    )


BENCHMARK = common.Benchmark(
    name="sensing_compiled",
    title="Reconstruction from binary measurements, compiled",
    needs=(
        common.data("recon", "Set11, BSD400 and T91"),
        common.program("qemu-system-arm", "emulator"),
        common.program("arm-none-eabi-gcc", "compiler"),
    ),
    packages=("apache-tvm", "onnxruntime", "torch", "numpy"),
    measure=measure,
    section=section,
    minutes=10,
)

if __name__ == "__main__":
    common.main(BENCHMARK)
