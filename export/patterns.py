"""The patterns of a sensing layer as the optics need them, and the network that begins at the measurements.

A bundle of a network with a sensing layer holds, in ``patterns/``, what the hardware shows (:func:`write`), a program
that loads, checks and simulates it with numpy alone (:mod:`compress.export.measuring`, copied as it is), and
``network.onnx``: the bundle's own ``model.onnx`` without the operators that simulate the optics, for a device whose
measurements come from a detector. ``docs/patterns.md`` describes the files.
"""

from __future__ import annotations

import inspect
import io
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compress.errors import CheckFailed
from compress.export import measuring
from compress.export.cut_network import Cut, as_read, cut
from compress.export.manifest import MODEL
from compress.export.measuring import Patterns, WrongPatterns
from compress.serial import write_atomic, write_json

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

    from compress.quantize.sensing import SensingLayer

    Run = Callable[[NDArray[np.float32]], NDArray[np.float32]]

FOLDER, NETWORK, PROGRAM = "patterns", "network.onnx", "measure.py"
"""Of a bundle, and in that folder."""


def write(
    layer: SensingLayer, folder: Path, image: tuple[int, int, int], mean: tuple[float, ...], std: tuple[float, ...]
) -> Patterns:
    """Write a layer's patterns to ``folder``, and read them again.

    Args:
        layer: in evaluation mode.
        folder: made here.
        image: channels, height and width that the network takes.
        mean, std: of its inputs, ``(light - mean) / std``, one number a channel.

    Raises:
        WrongPatterns: what was written can't be read: a bug, or the layer violates its own constraint.
    """
    (folder / measuring.FRAMES).mkdir(parents=True)
    values = layer.patterns().numpy().astype(np.int8)
    sequence = exposures(len(values), detection(layer))
    frames = layer.frames().numpy().astype(bool)
    for number, frame in enumerate(frames):
        write_atomic(folder / measuring.FRAMES / f"{number:05d}.png", png(frame))
    write_atomic(folder / measuring.PACKED, np.packbits(frames, axis=2).tobytes())
    write_atomic(folder / measuring.VALUES, _npy(values))
    write_atomic(folder / measuring.RANGE, _npy(network_range(layer, mean, std)))
    write_json(folder / measuring.DESCRIPTION, describe(layer, sequence, image, mean, std))
    write_atomic(folder / PROGRAM, inspect.getsource(measuring).encode())
    return measuring.load(folder)


def detection(layer: SensingLayer) -> str:
    """How the hardware comes to the network's measurements; see ``docs/patterns.md``."""
    if layer.differential is False:
        return "single" if layer.values == "01" else "balanced"
    return "mean" if layer.differential == "mean" else "pairs"


def exposures(count: int, how: str) -> list[dict[str, Any]]:
    """What is shown, in order: the pattern, whether its complement is, its sign, and how long, 1 being the usual."""
    found = []
    for pattern in range(count):
        for complement in measuring.DETECTIONS[how]:
            sign = -1 if complement else 1
            found.append({"pattern": pattern, "complement": complement, "sign": sign, "exposure": 1.0})
    return found


def network_range(layer: SensingLayer, mean: tuple[float, ...], std: tuple[float, ...]) -> NDArray[np.float64]:
    """Scale and offset (2, channels * measurements) that make what the network is fed of sums of light.

    The network's images are ``(light - mean) / std``. With the layer's own factor ``s`` and bias ``t``, of a channel

        z = s A (x - mean) / std + t = (s / std) A x + t - s mean A 1 / std.
    """
    factor, shift = (each.detach().double().numpy() for each in (layer.factors(), layer.shift))
    sums = layer.operator().detach().double().sum(1).numpy()
    scale = [factor / s for s in std]
    offset = [shift - factor * m * sums / s for m, s in zip(mean, std, strict=True)]
    return np.stack([np.concatenate(scale), np.concatenate(offset)])


def describe(
    layer: SensingLayer,
    sequence: list[dict[str, Any]],
    image: tuple[int, int, int],
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> dict[str, Any]:
    """``patterns.json``."""
    height, width = layer.size
    counts = (layer.signs() > 0).sum(1)
    constrained = layer.constraint is not None
    return {
        "schema": measuring.SCHEMA,
        "values": layer.values,
        "measurements": layer.measurements,
        "height": height,
        "width": width,
        "ratio": layer.ratio,
        "block": layer.block,
        "image": list(image),
        "tiles": [-(-image[1] // height), -(-image[2] // width)],
        "detection": detection(layer),
        "constraint": repr(layer.constraint) if constrained else None,
        "ones": {
            "least": int(counts.min()) if constrained else 0,
            "most": int(counts.max()) if constrained else height * width,
        },
        "light": {"mean": [float(each) for each in mean], "std": [float(each) for each in std]},
        "frames": {
            "packed": measuring.PACKED,
            "bits": "most significant first, each row padded to whole bytes with zeros",
            "row_bytes": -(-width // 8),
            "sequence": sequence,
        },
    }


def png(frame: NDArray[np.bool_]) -> bytes:
    """A greyscale PNG of one bit a pixel, (height, width): 1 is white; the same bytes every time."""
    height, width = frame.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), np.packbits(frame, axis=1)], 1)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows.tobytes(), 9)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _npy(array: NDArray[Any]) -> bytes:
    content = io.BytesIO()
    np.lib.format.write_array(content, np.ascontiguousarray(array), allow_pickle=False)
    return content.getvalue()


@dataclass(frozen=True)
class Optics:
    """What a candidate's ``patterns/`` holds beside its network.

    Attributes:
        patterns: as they were read again.
        cut: the network from the measurements on; the reason, in text, where the file can't be cut there.
    """

    patterns: Patterns
    cut: Cut | str


def export(
    model: nn.Module,
    bundle: Path,
    file: Path,
    image: tuple[int, int, int],
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Optics | None:
    """Write ``patterns/`` into a bundle whose ONNX file is there; None for a network without a sensing layer.

    Raises:
        CheckFailed: the file's own weights aren't the patterns.
    """
    from compress.quantize.sensing import SensingLayer

    layer = next((module for module in model.modules() if isinstance(module, SensingLayer)), None)
    if layer is None:
        return None
    patterns = write(layer.eval(), bundle / FOLDER, image, mean, std)
    made = cut(file, patterns)
    if isinstance(made, Cut):
        write_atomic(bundle / FOLDER / NETWORK, made.network)
        wrong = differing(patterns, made.weights)
        if wrong is not None:
            raise CheckFailed(str(bundle), [wrong])
    return Optics(patterns, made)


def differing(patterns: Patterns, weights: Mapping[str, NDArray[np.float32]]) -> str | None:
    """In what the weights of the network's first operators differ from the patterns; None if they are the patterns.

    Args:
        patterns: of the bundle.
        weights: of each operator that reads the image, (measurements, 1, height, width): a factor times two values.
    """
    wanted = patterns.matrix.reshape(len(patterns.values), -1)
    for name, weight in weights.items():
        rows = weight.reshape(len(weight), -1).astype(np.float64)
        if rows.shape != wanted.shape:
            return f"{name} of model.onnx has weights of {weight.shape}, not those of {len(wanted)} patterns"
        top = np.abs(rows).max(1, keepdims=True)
        steps = rows / np.where(top > 0, top, 1.0)
        wrong = np.flatnonzero(np.abs(steps - wanted).max(1) > 1e-4)
        if wrong.size:
            return f"pattern {wrong[0]} isn't what {name} of model.onnx measures with"
    return None


def check(
    bundle: Path, inputs: NDArray[np.float32], outputs: NDArray[np.float32], opened: Callable[[Path], Run]
) -> tuple[str, float]:
    """Check a bundle's patterns: what was found, and how far the network behind the measurements is off.

    Args:
        bundle: its folder.
        inputs, outputs: the golden ones, (N, C, H, W) and (N, ...).
        opened: opens an ONNX file and gives a function of float32 batches.

    Returns:
        A sentence, and the largest difference to the golden outputs, relative to the largest of them; 0 where the
        bundle has no network that begins at the measurements.

    Raises:
        CheckFailed: the patterns are damaged, or aren't what ``model.onnx`` measures with.
    """
    try:
        patterns = measuring.load(bundle / FOLDER)
    except WrongPatterns as error:
        raise CheckFailed(str(bundle), [str(error)]) from None
    made = cut(bundle / MODEL, patterns)
    count, (_, height, width) = len(patterns.frames), patterns.values.shape
    said = f"{len(patterns.values)} patterns of {width}x{height} in {count} frames"
    if isinstance(made, str):
        return f"{said}; {made}", 0.0
    wrong = differing(patterns, made.weights)
    if wrong is not None:
        raise CheckFailed(str(bundle), [wrong])
    path = bundle / FOLDER / NETWORK
    if not path.is_file() or path.read_bytes() != made.network:
        raise CheckFailed(str(bundle), [f"{FOLDER}/{NETWORK} isn't model.onnx from the measurements on"])
    predict = opened(path)
    # Measured is the image that the file measures, on its grid: else all that is rounded behind would differ too.
    found = np.concatenate([predict(measured(patterns, x)[None]) for x in as_read(bundle / MODEL, inputs)])
    scale = float(np.abs(outputs).max()) or 1.0
    return f"{said} are what model.onnx measures with", float(np.abs(found - outputs).max()) / scale


def measured(patterns: Patterns, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """What the network is fed of an input (C, H, W) of ``model.onnx``, measured without noise."""
    mean, std = (
        np.asarray(patterns.about["light"][name], dtype=np.float64).reshape(-1, 1, 1) for name in ("mean", "std")
    )
    # A pixel that is 0 isn't exactly 0 after it was normalized.
    return patterns.standardize(patterns.measure(np.maximum(x.astype(np.float64) * std + mean, 0.0)))


__all__ = [
    "FOLDER",
    "NETWORK",
    "Optics",
    "check",
    "describe",
    "detection",
    "differing",
    "export",
    "exposures",
    "measured",
    "network_range",
    "png",
    "write",
]
