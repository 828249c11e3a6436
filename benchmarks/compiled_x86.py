"""Compiled libraries on this x86 processor beside ONNX Runtime and LiteRT: latency, compile time, agreement.

ONNX Runtime runs the very Q/DQ file that the library was compiled from. LiteRT, with XNNPACK, runs MLPerf Tiny's own
int8 ResNet-8, the library is compiled from its weights and grids. All runtimes of a network take turns.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import common, mlperf_tiny
from benchmarks.compiled_networks import MLPERF, MOBILENET, Network, cifar_networks, mobilenet

OURS, ORT, ORT_8, LITERT = "compress", "onnxruntime", "onnxruntime, 8-bit input", "LiteRT (XNNPACK)"
THREADS = (1, 2)
ROUNDS, ATTEMPTS, WAIT_S = 30, 3, 20.0
BITS = (8, 4, 2, 1)
EXACT_IMAGES: Mapping[str, int] = {MLPERF: 500, "ResNet-20": 500, "ResNet-56": 200, MOBILENET: 20}
"""How many images are compared with the reference here, bit for bit."""
FACTOR = 1.3
"""How much faster than ONNX Runtime the compiled library has to be."""


def compiled(network: Network, folder: Path, bits: int = 8) -> tuple[Any, float]:
    """The library of a network, and how long it took to make."""
    from compress.export.compiled import Compiled, compile_file
    from compress.export.kernels import backends
    from compress.export.library import building
    from compress.integer.signedness import with_signedness

    isa = backends.host()
    assert isa is not None
    start = time.perf_counter()
    if network.source.suffix == ".onnx":
        made = compile_file(network.source, isa, folder)
    else:
        program = mlperf_tiny.with_bits(mlperf_tiny.program(network.source), bits)
        code = backends.assemble(program, isa)
        built = building.build(code, isa, folder, file_shapes=program.file_shapes)
        made = Compiled(with_signedness(program, isa.signed), built)
    return made, time.perf_counter() - start


def jobs(network: Network, library: Path, threads: int) -> tuple[dict[str, Callable[[], Any]], Any]:
    """What runs one image, by runtime; and the library to close."""
    from compress.export.library.loader import Library
    from compress.profiling import session

    loaded = Library(library, threads)
    x = network.images[:1]
    (end,) = loaded.interface.inputs
    found: dict[str, Callable[[], Any]] = {OURS: loaded.prepared([end.to_library(x)[0]])}
    if network.source.suffix == ".onnx":
        found[ORT] = partial(session.runner(session.open_session(network.source, threads)), x)
        path = network.source.with_suffix(".8bit.onnx")
        quantized = with_quantized_input(network.source, path, x)
        if quantized is not None:
            found[ORT_8] = partial(session.runner(session.open_session(path, threads)), quantized)
    else:
        found[LITERT] = litert(network.source, threads).invoke
    return found, loaded


def litert(path: Path, threads: int) -> Any:
    """LiteRT's interpreter with its default delegate, an image in its input."""
    from ai_edge_litert.interpreter import Interpreter

    made = Interpreter(str(path), num_threads=threads)
    made.allocate_tensors()
    (end,) = made.get_input_details()
    made.set_tensor(end["index"], np.random.default_rng(0).integers(-128, 128, end["shape"]).astype(end["dtype"]))
    return made


def with_quantized_input(source: Path, path: Path, x: NDArray[np.float32]) -> NDArray[np.uint8] | None:
    """The file without the quantization of its input, and the image as it then takes it: libraries take it so too.
    None where something stands in front of that quantization."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(source)
    graph = model.graph
    (given,) = graph.input
    readers = [node for node in graph.node if given.name in node.input]
    if [node.op_type for node in readers] != ["QuantizeLinear"]:
        return None
    (node,) = readers
    values = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    scale, zero = values[node.input[1]], values[node.input[2]]
    graph.node.remove(node)
    for other in graph.node:
        for index, name in enumerate(other.input):
            other.input[index] = given.name if name == node.output[0] else name
    given.type.tensor_type.elem_type = onnx.TensorProto.UINT8
    kept = [value for value in graph.value_info if value.name != node.output[0]]
    del graph.value_info[:]
    graph.value_info.extend(kept)
    onnx.save(model, path)
    return np.clip(np.rint(x / scale) + int(zero), 0, 255).astype(np.uint8)


def rows_of(network: Network) -> list[common.Row]:
    """A row for each runtime and number of threads."""
    from compress.export.library.loader import Library
    from compress.profiling import session, timer

    rows: list[common.Row] = []
    with tempfile.TemporaryDirectory() as folder:
        made, seconds = compiled(network, Path(folder))
        path = made.library.linked_path
        with Library(path) as library:
            agreement = compare(network, made.program, library)
        for threads in THREADS:
            timed, library = jobs(network, path, threads)
            found, other_work = common.quietly(
                partial(timer.interleaved, timed, session.machine(), {}, rounds=ROUNDS), ATTEMPTS, WAIT_S
            )
            library.close()
            for runtime, measurement in found.items():
                latency = measurement.latency_s
                rows.append(
                    {
                        "network": network.name,
                        "weight_bits": 8,
                        "runtime": runtime,
                        "threads": str(threads),
                        "latency_ms": round(latency * 1e3, 5),
                        "latency_p90_ms": round(measurement.latency_p90_s * 1e3, 5),
                        "gmac_per_s": round(made.program.macs / latency / 1e9, 1),
                        "speedup": round(latency / found[OURS].latency_s, 3),
                        "compile_seconds": round(seconds, 1) if runtime == OURS else None,
                        "constant_bytes": made.library.weight_bytes if runtime == OURS else None,
                        "arena_bytes": made.library.arena_bytes if runtime == OURS else None,
                        **(agreement[runtime] if runtime in agreement else dict.fromkeys(agreement[OURS])),
                        "other_work_percent": other_work,
                    }
                )
                print(rows[-1], flush=True)
    return rows


def compare(network: Network, program: Any, library: Any) -> dict[str, common.Row]:
    """Accuracy of each runtime, and how the library agrees with the reference and with its peer."""
    from compress.integer import reference
    from compress.profiling import session

    (end,), (result,) = library.interface.inputs, library.interface.outputs
    ours = library.run(network.images)
    count = EXACT_IMAGES[network.name]
    given = end.to_library(network.images[:count])
    wanted = [reference.run(program, {end.name: image})[result.name] for image in given]
    differs = ours[:count] != result.from_library(np.stack(wanted))

    def accuracy(outputs: NDArray[Any]) -> float:
        return round(100 * float((outputs.reshape(len(outputs), -1).argmax(1) == network.labels).mean()), 2)

    found: dict[str, common.Row] = {
        OURS: {
            "images": len(network.images),
            "accuracy_percent": accuracy(ours),
            "compared_images": count,
            "different_images": int(differs.reshape(count, -1).any(1).sum()),
            "same_class_percent": None,
        }
    }
    if network.source.suffix == ".onnx":
        run = session.runner(session.open_session(network.source, None))
        theirs = np.concatenate([run(network.images[i : i + 1]) for i in range(len(network.images))])
        name = ORT
    else:
        made, name = litert(network.source, 1), LITERT
        (source,), (target,) = made.get_input_details(), made.get_output_details()
        outputs = []
        for image in network.images:
            made.set_tensor(source["index"], (image.transpose(1, 2, 0) - 128).astype(np.int8)[None])
            made.invoke()
            outputs.append(made.get_tensor(target["index"])[0].astype(np.float32))
        theirs = np.stack(outputs)
    same = theirs.reshape(len(theirs), -1).argmax(1) == ours.reshape(len(ours), -1).argmax(1)
    found[name] = dict.fromkeys(found[OURS]) | {
        "images": len(network.images),
        "accuracy_percent": accuracy(theirs),
        "same_class_percent": round(100 * float(same.mean()), 2),
    }
    return found


def low_bits(network: Network) -> list[common.Row]:
    """MLPerf Tiny's ResNet-8 with weights of fewer bits, all widths in turns, on one thread: bytes and time."""
    from compress.export.library.loader import Library
    from compress.profiling import session, timer

    rows: list[common.Row] = []
    with tempfile.TemporaryDirectory() as folder:
        made = {bits: compiled(network, Path(folder) / str(bits), bits) for bits in BITS}
        opened = {bits: Library(one.library.linked_path) for bits, (one, _) in made.items()}
        timed = {}
        for bits, library in opened.items():
            (end,) = library.interface.inputs
            timed[str(bits)] = library.prepared([end.to_library(network.images[:1])[0]])
        found, other_work = common.quietly(
            partial(timer.interleaved, timed, session.machine(), {}, rounds=ROUNDS), ATTEMPTS, WAIT_S
        )
        for bits, (one, seconds) in made.items():
            latency = found[str(bits)].latency_s
            rows.append(
                dict.fromkeys(_KEYS)
                | {
                    "network": network.name + ", width of weights",
                    "weight_bits": bits,
                    "runtime": OURS,
                    "threads": "1",
                    "latency_ms": round(latency * 1e3, 5),
                    "latency_p90_ms": round(found[str(bits)].latency_p90_s * 1e3, 5),
                    "gmac_per_s": round(one.program.macs / latency / 1e9, 1),
                    "speedup": round(latency / found["8"].latency_s, 3),
                    "compile_seconds": round(seconds, 1),
                    "constant_bytes": one.library.weight_bytes,
                    "arena_bytes": one.library.arena_bytes,
                    "other_work_percent": other_work,
                }
            )
    return rows


_KEYS = (
    "network",
    "weight_bits",
    "runtime",
    "threads",
    "latency_ms",
    "latency_p90_ms",
    "gmac_per_s",
    "speedup",
    "compile_seconds",
    "constant_bytes",
    "arena_bytes",
    "images",
    "accuracy_percent",
    "compared_images",
    "different_images",
    "same_class_percent",
    "other_work_percent",
)


def measure() -> list[common.Row]:
    rows: list[common.Row] = []
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        networks = [*cifar_networks(folder), mobilenet(folder)]
        for network in networks:
            rows += rows_of(network)
        rows += low_bits(networks[0])
    return rows


def find(rows: list[dict[str, Any]], **wanted: Any) -> dict[str, Any]:
    """The only row with these values."""
    (row,) = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
    return row


def section(document: Mapping[str, Any]) -> str:
    rows = document["rows"]
    timed = [row for row in rows if row["runtime"] != OURS]
    widths = [row for row in rows if row["network"].startswith(MLPERF + ",")]
    table = common.markdown_table(
        ["network", "threads", "compress, ms", "GMAC/s", "peer", "peer, ms", "times as fast"],
        [
            [
                row["network"],
                row["threads"],
                common.shown(
                    (ours := find(rows, network=row["network"], threads=row["threads"], runtime=OURS))["latency_ms"], 4
                ),
                common.shown(ours["gmac_per_s"], 0),
                row["runtime"],
                common.shown(row["latency_ms"], 4),
                common.shown(row["speedup"], 2),
            ]
            for row in timed
        ],
    )
    packed = common.markdown_table(
        ["weights, bits", "ms", "of 8 bits", "constants, bytes", "of 8 bits"],
        [
            [
                str(row["weight_bits"]),
                common.shown(row["latency_ms"], 4),
                common.shown(row["speedup"], 2),
                common.shown(row["constant_bytes"]),
                common.shown(row["constant_bytes"] / widths[0]["constant_bytes"], 2),
            ]
            for row in widths
        ],
    )
    return "\n\n".join([_kept(rows), table.rstrip(), _agreement(rows), packed.rstrip(), _conditions(rows)]) + "\n"


def _kept(rows: list[dict[str, Any]]) -> str:
    """Which of the targets were reached."""
    one = [row for row in rows if row["threads"] == "1" and row["speedup"] is not None]
    ort = [
        min(
            (r for r in one if r["network"] == row["network"] and r["runtime"] in (ORT, ORT_8)),
            key=lambda r: r["speedup"],
        )
        for row in one
        if row["runtime"] == ORT
    ]
    (litert_row,) = [row for row in one if row["runtime"] == LITERT]
    least, slowest = min(row["speedup"] for row in ort), max(row["compile_seconds"] or 0 for row in rows)
    return (
        "Batch 1, int8, median of turns in one run. Targets, on one thread: "
        f"at least {FACTOR} times as fast as ONNX Runtime on the same Q/DQ file "
        f"({'kept' if least >= FACTOR else 'missed'}: {least:.2f} at the least); "
        "MLPerf Tiny's ResNet-8 faster than LiteRT with XNNPACK "
        f"({'kept' if litert_row['speedup'] > 1 else 'missed'}: {litert_row['speedup']:.2f}); compiled in less than a "
        f"minute ({'kept' if slowest < 60 else 'missed'}: {slowest:.1f} s at the most, TVM's import included in the "
        "first). Libraries take their input in 8 bits; `onnxruntime` quantizes a float one, as the file has it. Where "
        "the file begins with that, `onnxruntime, 8-bit input` is the same file without it, and the target is judged "
        "by that."
    )


def _agreement(rows: list[dict[str, Any]]) -> str:
    said = []
    for name in dict.fromkeys(row["network"] for row in rows if row["images"]):
        ours, peer = (
            next(r for r in rows if r["network"] == name and r["images"] and (r["runtime"] == OURS) == own)
            for own in (True, False)
        )
        wrong, count = ours["different_images"], ours["compared_images"]
        exact = f"**different on {wrong:,} of** {count:,} images" if wrong else f"bit-exact on {count:,} images"
        said.append(
            f"{name}: {exact} with the integer reference; "
            f"{ours['accuracy_percent']:.2f}% of {ours['images']:,} images right, {peer['runtime']} "
            f"{peer['accuracy_percent']:.2f}%, the same class on {peer['same_class_percent']:.2f}%."
        )
    return " ".join(said)


def _conditions(rows: list[dict[str, Any]]) -> str:
    busy = max(row["other_work_percent"] or 0.0 for row in rows)
    return (
        "The second table's weights are the 8-bit ones rounded, for bytes and time alone; they stay packed in memory "
        f"and are unpacked in registers. Other programs used up to {busy:.1f}% of the cores while latencies were taken."
    )


BENCHMARK = common.Benchmark(
    name="compiled_x86",
    title="compiled libraries on x86 beside ONNX Runtime and LiteRT",
    needs=(
        common.data("cifar10", "CIFAR-10"),
        common.data("weights/cifar10-akamaster", "akamaster's ResNet-20 and ResNet-56"),
        common.data("mlperf-tiny/ic", "MLPerf Tiny's ResNet-8"),
        common.data("imagenet-sample", "1,000 ImageNet images"),
        common.data("weights/imagenet-mobilenet_v2", "MobileNetV2"),
        common.package("ai-edge-litert", "ai_edge_litert"),
    ),
    packages=("apache-tvm", "onnxruntime", "ai-edge-litert", "onnx", "torch", "numpy"),
    measure=measure,
    section=section,
    minutes=15,
)

if __name__ == "__main__":
    common.main(BENCHMARK)
