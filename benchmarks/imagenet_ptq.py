"""SqueezeNet 1.1 and MobileNetV2 quantized without training on a thousand ImageNet images, beside peers.

Calibrated, without labels, on images of the even classes; evaluated on all images, and on those of the odd classes
alone. Ours, NNCF's and ONNX Runtime's are files in ONNX Runtime, the other peers' accuracies are their simulations'.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks import common, mixed_precision, prune_imagenet, quantizers

IMAGES = 64
OURS = "compress, hessian"
ORT = "onnxruntime quantize_static"


def splits(name: str) -> tuple[Any, Any, Any]:
    """The network, its calibration images, and data to evaluate on: all images, even classes first."""
    from compress import models
    from compress.data import Data, FolderSplit

    home = common.data_dir() or Path()
    loaded = models.load(name, weights=str(home / "weights" / prune_imagenet.NETWORKS[name]))
    assert loaded.input_shape is not None
    assert loaded.mean is not None
    assert loaded.std is not None
    even, odd = prune_imagenet.split(home / "imagenet-sample")
    form = (loaded.input_shape, loaded.mean, loaded.std)
    calibrate, every = (
        FolderSplit(name, tuple(file for file, _ in part), tuple(index for _, index in part), *form)
        for part in (even, [*odd, *even])
    )
    chosen, _ = next(calibrate.batches(IMAGES))
    classes = tuple(str(index) for index in range(loaded.num_classes or 0))
    data = Data(name, "classification", calibrate, every, classes, "", loaded.mean, loaded.std)
    return loaded.model, chosen, (data, len(odd))


def figures(run: Callable[[Any], Any], data: Any, odd: int) -> common.Row:
    """Accuracy on all images and on the first ``odd`` of them, which nobody calibrated on."""
    import torch

    right = []
    for x, labels in data.evaluate.batches(50):
        right += (torch.as_tensor(run(x)).argmax(1) == labels).tolist()
    return {
        "accuracy_percent": round(100 * sum(right) / len(right), 2),
        "unseen_accuracy_percent": round(100 * sum(right[:odd]) / odd, 2),
        "images": len(right),
        "unseen_images": odd,
    }


def of_file(path: Path, data: Any, odd: int) -> common.Row:
    from compress.profiling.session import open_session

    session = open_session(path)
    name = session.get_inputs()[0].name
    found = figures(lambda x: session.run(None, {name: x.numpy()})[0], data, odd)
    return {**found, "file_bytes": path.stat().st_size}


def of_module(module: Any, data: Any, odd: int) -> common.Row:
    import torch

    with torch.no_grad():
        return {**figures(module, data, odd), "file_bytes": None}


def network(name: str, folder: Path) -> list[common.Row]:
    """The rows of one network."""
    from compress import targets
    from compress.export import onnx as interchange
    from compress.quantize import quantize
    from compress.types import State

    model, images, (data, odd) = splits(name)
    source, path = folder / f"{name}.onnx", folder / "made.onnx"
    interchange.export(State(model), images[:2], source)

    def ours(bits: float, target: Any) -> Path:
        interchange.export(quantize(model, images, weight_bits=bits, target=target).state, images[:2], path)
        return path

    def written(make: Callable[[], None]) -> Path:
        make()
        return path

    wide, cpu = mixed_precision.device(), targets.load("cpu")
    cases: list[tuple[str, str, Callable[[], Any]]] = [
        ("float", "W32A32", lambda: source),
        (OURS, "W8A8", lambda: ours(8, cpu)),
        (ORT, "W8A8", lambda: written(lambda: quantizers.onnxruntime(source, path, images, "QUInt8", "MinMax"))),
        (quantizers.NNCF, "W8A8", lambda: written(lambda: quantizers.nncf(source, path, images))),
        (OURS, "W4A8", lambda: ours(4, cpu)),
        (f"{OURS}, 1 to 8 bits a layer", "W4A8 on average", lambda: ours(4, wide)),
        (quantizers.MODELOPT, "W4A8", lambda: quantizers.modelopt(model, images, 4)),
        (quantizers.MCT, "W4A8 on average", lambda: quantizers.mct(model, images, 4)),
    ]
    rows: list[common.Row] = []
    for who, precision, make in cases:
        why = quantizers.missing(who)
        if why is not None:
            print(f"{who} was left out: {why}", flush=True)
            continue
        start = time.perf_counter()
        made, failed = quantizers.tried(make)
        seconds = time.perf_counter() - start
        found: common.Row = dict.fromkeys(
            ("accuracy_percent", "unseen_accuracy_percent", "images", "unseen_images", "file_bytes")
        )
        if failed is None:
            found = of_file(made, data, odd) if isinstance(made, Path) else of_module(made, data, odd)
        rows.append(
            {
                "network": name,
                "made_by": who,
                "precision": precision,
                **found,
                "seconds": None if who == "float" else round(seconds, 1),
                "calibration_images": len(images),
                "failed": failed,
            }
        )
        print(rows[-1], flush=True)
    return rows


def measure() -> list[common.Row]:
    from compress.serial import write_json

    rows: list[common.Row] = []
    load_average = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        for name in prune_imagenet.NETWORKS:
            rows += network(name, Path(folder))
            # One network's rows are worth having should the next one be stopped.
            write_json(BENCHMARK.results, common.document(BENCHMARK, rows, load_average))
    return rows


def section(document: Mapping[str, Any]) -> str:
    rows = document["rows"]
    first = rows[0]
    said = [
        f"Nothing trained; {first['calibration_images']} images of the even classes to calibrate on, without labels. "
        "The sample has 1,000 images, one a class, most likely of the training set, so accuracies run high: they "
        "compare a network with its quantized self and aren't validation accuracies. The first accuracy is of all "
        f"{first['images']}, the second of the {first['unseen_images']} of the odd classes, none of which was "
        "calibrated on; its 95% interval is several points. First and last layers count like all others. Files are "
        "measured in ONNX Runtime; Model Compression Toolkit and TensorRT Model Optimizer are measured in their "
        "simulations.\n\n"
    ]
    failed = [
        f"{row['made_by']} on {row['network']}, {row['precision']}: {row['failed']}" for row in rows if row["failed"]
    ]
    if failed:
        said.append(f"Failed: {'; '.join(failed)}.\n\n")
    header = ["network", "made by", "precision", "accuracy, %", "unseen, %", "file, KiB", "seconds"]
    table = [
        [
            row["network"],
            row["made_by"],
            row["precision"],
            common.shown(row["accuracy_percent"], 1),
            common.shown(row["unseen_accuracy_percent"], 1),
            common.shown(row["file_bytes"] / 1024, 0) if row["file_bytes"] else "—",
            common.shown(row["seconds"], 0) if row["seconds"] is not None else "—",
        ]
        for row in rows
    ]
    return "".join(said) + common.markdown_table(header, table, text_columns=3)


BENCHMARK = common.Benchmark(
    name="imagenet_ptq",
    title="SqueezeNet 1.1 and MobileNetV2 at W8A8 and W4A8 without training, beside peers",
    needs=(
        common.data("imagenet-sample", "1,000 ImageNet images"),
        common.data("weights/imagenet-squeezenet1_1", "SqueezeNet 1.1"),
        common.data("weights/imagenet-mobilenet_v2", "MobileNetV2"),
    ),
    packages=("torch", "onnx", "onnxruntime", "numpy", *quantizers.PACKAGES),
    measure=measure,
    section=section,
    minutes=15,
)

if __name__ == "__main__":
    common.main(BENCHMARK)
