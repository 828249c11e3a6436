"""Load a bundle's patterns, check them, and simulate what the hardware measures. Needs numpy and nothing else.

python measure.py                           check the patterns: "ok", or what is wrong (exit status 4)
python measure.py IMAGE.npy                 write what the hardware would measure to IMAGE.measured.npy
    --photons N --read S --adc-bits B       with shot noise, read noise and an ADC of B bits
    --seed N                                of the noise

This file stands alone: a bundle has a copy of it in patterns/. docs/patterns.md has the format.
"""

from __future__ import annotations

import argparse
import json
import math
import pathlib
import struct
import sys
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]

SCHEMA = 1
DESCRIPTION, VALUES, RANGE, PACKED, FRAMES = "patterns.json", "patterns.npy", "range.npy", "frames.bin", "frames"
DETECTIONS = {"single": (False,), "pairs": (False, True), "mean": (False,), "balanced": (False,)}
"""How exposures become measurements, and whether each pattern is shown as it is (False), as its complement (True)."""
LARGEST = 2**28
"""Pixels of all patterns together; more were made to exhaust memory."""


class WrongPatterns(ValueError):
    """Patterns that can't be used; the message is one line that says why."""


class Patterns:
    """The patterns of a sensing layer.

    Attributes:
        values: int8 (measurements, height, width): 0 and 1, or -1 and +1.
        frames: uint8 (exposures, height, width), 0 and 1: what the device shows, in order.
        scale, offset: float64 (channels * measurements,): the network is fed ``scale * y + offset``.
        about: what ``patterns.json`` says.
    """

    def __init__(
        self,
        values: NDArray[np.int8],
        frames: NDArray[np.uint8],
        scale: Floats,
        offset: Floats,
        about: dict[str, Any],
    ) -> None:
        self.values, self.frames, self.scale, self.offset, self.about = values, frames, scale, offset, about

    @property
    def matrix(self) -> Floats:
        """What is applied to a block's light, float64 (measurements, height * width)."""
        rows = self.values.reshape(len(self.values), -1).astype(np.float64)
        signed = self.about["detection"] != "single"
        return 2 * rows - 1 if signed and self.about["values"] == "01" else rows

    @property
    def times(self) -> Floats:
        """How long each exposure takes, 1 being the usual; float64 (exposures,)."""
        return np.array([each["exposure"] for each in self.about["frames"]["sequence"]], dtype=np.float64)

    def full_frame(self, exposure: int) -> NDArray[np.uint8]:
        """What the whole device shows in one exposure: the frame, repeated over all blocks; uint8, 0 and 1."""
        return np.tile(self.frames[exposure], self.about["tiles"])

    def measure(
        self,
        light: ArrayLike,
        photons: float | None = None,
        read: float = 0.0,
        adc_bits: int | None = None,
        generator: np.random.Generator | None = None,
    ) -> Floats:
        """What the hardware measures of an image.

        With an exposure's light ``l`` and ``g = photons`` the detector counts ``N ~ Poisson(g l) + Normal(0, read^2)``
        electrons; an ADC of ``B`` bits rounds them to ``2^B - 1`` steps of its full scale and clips. A reading is
        ``N / g``. Without any noise the result is exact.

        Args:
            light: (C, H, W) or (H, W), 0 or more; a white pixel is 1.
            photons: electrons that a white pixel gives in an exposure; None for no shot noise (then g is 1).
            read: standard deviation of the read noise, in electrons, or in white pixels' light without ``photons``.
            adc_bits: None for no rounding.
            generator: a numpy Generator; a new one of seed 0 by default.

        Returns:
            float64 (C * measurements, rows, columns): sums of light.
        """
        light = np.asarray(light, dtype=np.float64)
        light = light[None] if light.ndim == 2 else light
        channels, height, width = self.about["image"]
        if light.shape != (channels, height, width):
            raise WrongPatterns(f"the image is {light.shape}, the patterns are for {(channels, height, width)}")
        if not np.isfinite(light).all() or light.min() < 0:
            raise WrongPatterns("light is 0 or more, and finite")
        noisy = photons is not None or read or adc_bits is not None
        generator = generator or np.random.default_rng(0)
        detector = Detector(photons, read, adc_bits, generator)
        found = [self._channel(self._blocks(part, c), detector if noisy else None) for c, part in enumerate(light)]
        return np.concatenate(found)

    def standardize(self, y: ArrayLike) -> NDArray[np.float32]:
        """What the network is fed of measurements (C * measurements, rows, columns): float32 of the same shape."""
        y = np.asarray(y, dtype=np.float64)
        if y.ndim != 3 or y.shape[0] != len(self.scale) or list(y.shape[1:]) != list(self.about["tiles"]):
            wanted = (len(self.scale), *self.about["tiles"])
            raise WrongPatterns(f"the measurements are {y.shape}, the network takes {wanted}")
        fed: NDArray[np.float32] = (self.scale[:, None, None] * y + self.offset[:, None, None]).astype(np.float32)
        return fed

    def _blocks(self, light: Floats, channel: int) -> Floats:
        """The blocks of one channel, (rows, columns, height * width); beyond the image is its mean."""
        (rows, columns), (_, height, width) = self.about["tiles"], self.values.shape
        pad = self.about["light"]["mean"][channel]
        whole = np.full((rows * height, columns * width), max(0.0, pad))
        whole[: light.shape[0], : light.shape[1]] = light
        return whole.reshape(rows, height, columns, width).transpose(0, 2, 1, 3).reshape(rows, columns, -1)

    def _channel(self, blocks: Floats, detector: Detector | None) -> Floats:
        """The measurements (measurements, rows, columns) of one channel's blocks."""
        if detector is None:
            return np.moveaxis(blocks @ self.matrix.T, -1, 0)
        shown = self.frames.reshape(len(self.frames), -1) * self.times[:, None]
        light = np.moveaxis(blocks @ shown.T, -1, 0)
        full = blocks.shape[-1] * float(self.times.max())
        if self.about["detection"] == "balanced":
            total = self.times[:, None, None] * blocks.sum(-1)
            return self.combine(detector.difference(light, total - light, full))
        if self.about["detection"] == "single":
            full = float(shown.sum(1).max())
        return self.combine(detector.read_out(light, full))

    def combine(self, readings: ArrayLike) -> Floats:
        """Measurements (measurements, ...) of readings (exposures, ...), one a frame in the order of the sequence.

        The readings of a pattern and of its complement are added with their signs, each over its exposure's time.
        """
        read: Floats = np.asarray(readings, dtype=np.float64)
        if len(read) != len(self.frames):
            raise WrongPatterns(f"{len(read)} readings, there are {len(self.frames)} exposures")
        found = np.zeros((len(self.values), *read.shape[1:]))
        for number, exposure in enumerate(self.about["frames"]["sequence"]):
            found[exposure["pattern"]] += exposure["sign"] * read[number] / exposure["exposure"]
        return np.concatenate([found[:1], 2 * found[1:] - found[:1]]) if self.about["detection"] == "mean" else found


class Detector:
    """Shot noise, read noise and an ADC; see :meth:`Patterns.measure`."""

    def __init__(
        self, photons: float | None, read: float, adc_bits: int | None, generator: np.random.Generator
    ) -> None:
        if photons is not None and not (photons > 0 and math.isfinite(photons)):
            raise WrongPatterns(f"photons {photons}: give the electrons of a white pixel, above 0")
        if not (read >= 0 and math.isfinite(read)):
            raise WrongPatterns(f"read noise {read}: give a standard deviation of 0 or more")
        if adc_bits is not None and not 1 <= adc_bits <= 24:
            raise WrongPatterns(f"ADC of {adc_bits} bits: give 1 to 24")
        self.photons, self.read, self.adc_bits, self.generator = photons, read, adc_bits, generator

    def read_out(self, light: Floats, full: float) -> Floats:
        """One exposure's reading of ``light``; ``full`` is the ADC's full scale."""
        gain = self.photons or 1.0
        return self._converted(self._counted(light), 0.0, full * gain) / gain

    def difference(self, bright: Floats, dark: Floats, full: float) -> Floats:
        """The reading of two halves that are collected at once and subtracted before they are read."""
        gain = self.photons or 1.0
        return self._converted(self._counted(bright) - self._counted(dark), -full * gain, full * gain) / gain

    def _counted(self, light: Floats) -> Floats:
        electrons = np.maximum(light, 0.0) * (self.photons or 1.0)
        return self.generator.poisson(electrons).astype(np.float64) if self.photons is not None else electrons

    def _converted(self, electrons: Floats, low: float, high: float) -> Floats:
        if self.read:
            electrons = electrons + self.read * self.generator.standard_normal(electrons.shape)
        if self.adc_bits is not None:
            step = (high - low) / (2**self.adc_bits - 1)
            electrons = np.rint((np.clip(electrons, low, high) - low) / step) * step + low
        return electrons


def load(folder: str | pathlib.Path) -> Patterns:
    """The patterns in a folder, every file of it checked.

    Raises:
        WrongPatterns: something is missing, damaged, or isn't what the description says.
    """
    folder = pathlib.Path(folder)
    about = _description(folder)
    values = _array(folder / VALUES, np.int8)
    shape = (about["measurements"], about["height"], about["width"])
    if values.shape != shape:
        raise WrongPatterns(f"{VALUES} has the shape {values.shape}, {DESCRIPTION} says {shape}")
    low = 0 if about["values"] == "01" else -1
    if not np.isin(values, (low, 1)).all():
        found = values[~np.isin(values, (low, 1))]
        raise WrongPatterns(f"{VALUES} holds {int(found[0])}: the patterns have the values {low} and 1")
    _check_ones(values > 0, about["ones"])
    channels = about["image"][0]
    scale, offset = _range(folder, channels * shape[0])
    frames = _frames(folder, values > 0, about)
    return Patterns(values, frames, scale, offset, about)


def _description(folder: pathlib.Path) -> dict[str, Any]:
    path = folder / DESCRIPTION
    try:
        about: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        counts = [about["measurements"], about["height"], about["width"], *about["image"], *about["tiles"]]
        sequence = about["frames"]["sequence"]
        numbers = [*about["light"]["mean"], *about["light"]["std"]]
        fine = (
            about["schema"] == SCHEMA
            and about["values"] in ("01", "+-1")
            and about["detection"] in DETECTIONS
            and all(isinstance(each, int) and each > 0 for each in counts)
            and math.prod(counts[:3]) <= LARGEST
            and all(isinstance(each["pattern"], int) and isinstance(each["complement"], bool) for each in sequence)
            and all(each["sign"] == (-1 if each["complement"] else 1) for each in sequence)
            and all(math.isfinite(each["exposure"]) and each["exposure"] > 0 for each in sequence)
            and len(about["image"]) == 3
            and len(about["tiles"]) == 2
            and len(about["light"]["mean"]) == len(about["light"]["std"]) == about["image"][0]
            and all(isinstance(each, (int, float)) and math.isfinite(each) for each in numbers)
            and all(isinstance(about["ones"][end], int) for end in ("least", "most"))
        )
    except FileNotFoundError:
        raise WrongPatterns(f"{DESCRIPTION} is missing") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WrongPatterns(f"{DESCRIPTION} is damaged ({type(error).__name__}: {error})") from None
    if not fine:
        raise WrongPatterns(f"{DESCRIPTION} isn't what this program reads (schema {about.get('schema')})")
    return about


def _array(path: pathlib.Path, kind: type[np.generic]) -> NDArray[Any]:
    try:
        found = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise WrongPatterns(f"{path.name} is missing") from None
    except (OSError, ValueError, EOFError) as error:
        raise WrongPatterns(f"{path.name} can't be read ({error})") from None
    if not isinstance(found, np.ndarray) or found.dtype != kind:
        raise WrongPatterns(f"{path.name} holds {getattr(found, 'dtype', 'no array')}, not {np.dtype(kind)}")
    return found


def _range(folder: pathlib.Path, count: int) -> tuple[Floats, Floats]:
    found = _array(folder / RANGE, np.float64)
    if found.shape != (2, count) or not np.isfinite(found).all():
        raise WrongPatterns(f"{RANGE} must hold a finite scale and offset for each of {count} measurements")
    return found[0], found[1]


def _check_ones(ones: NDArray[np.bool_], limits: Mapping[str, int]) -> None:
    counts = ones.reshape(len(ones), -1).sum(1)
    for number, count in enumerate(counts.tolist()):
        if not limits["least"] <= count <= limits["most"]:
            wanted = f"{limits['least']} to {limits['most']}" if limits["least"] != limits["most"] else limits["least"]
            raise WrongPatterns(f"pattern {number} has {count} ones, its hardware needs {wanted}")


def _frames(folder: pathlib.Path, ones: NDArray[np.bool_], about: Mapping[str, Any]) -> NDArray[np.uint8]:
    """What is shown, from the packed array, each frame checked against its pattern and its image."""
    sequence = about["frames"]["sequence"]
    height, width = ones.shape[1:]
    row = -(-width // 8)
    try:
        packed = np.frombuffer((folder / PACKED).read_bytes(), np.uint8)
    except OSError:
        raise WrongPatterns(f"{PACKED} is missing") from None
    if packed.size != len(sequence) * height * row:
        raise WrongPatterns(f"{PACKED} holds {packed.size} bytes, {len(sequence) * height * row} are needed")
    frames = np.unpackbits(packed.reshape(len(sequence), height, row), axis=2)[:, :, :width]
    never = {(pattern, way) for pattern in range(len(ones)) for way in DETECTIONS[about["detection"]]}
    for number, exposure in enumerate(sequence):
        if not 0 <= exposure["pattern"] < len(ones):
            raise WrongPatterns(f"exposure {number} shows pattern {exposure['pattern']}, there are {len(ones)}")
        if (exposure["pattern"], exposure["complement"]) not in never:
            what = f"{'the complement of ' if exposure['complement'] else ''}pattern {exposure['pattern']}"
            raise WrongPatterns(f"exposure {number} shows {what}, which isn't needed or not again")
        never.remove((exposure["pattern"], exposure["complement"]))
        wanted = ones[exposure["pattern"]] != exposure["complement"]
        if not np.array_equal(frames[number], wanted):
            raise WrongPatterns(f"{PACKED}: frame {number} isn't pattern {exposure['pattern']}")
        path = folder / FRAMES / f"{number:05d}.png"
        if not np.array_equal(read_png(path, (height, width)), wanted):
            raise WrongPatterns(f"{FRAMES}/{path.name} isn't pattern {exposure['pattern']}")
    if never:
        pattern, complement = min(never)
        raise WrongPatterns(f"{'the complement of ' if complement else ''}pattern {pattern} is never shown")
    return frames


def read_png(path: pathlib.Path, shape: Sequence[int]) -> NDArray[np.uint8]:
    """A greyscale PNG of one bit a pixel, of ``shape`` (height, width), as uint8 0 and 1.

    Raises:
        WrongPatterns: it is missing, damaged, of another size or bit depth.
    """
    name = f"{path.parent.name}/{path.name}"
    try:
        content = path.read_bytes()
    except OSError:
        raise WrongPatterns(f"{name} is missing") from None
    try:
        if content[:8] != b"\x89PNG\r\n\x1a\n":
            raise ValueError("no PNG")
        width, height, depth, color, _, _, interlaced = struct.unpack(">IIBBBBB", content[16:29])
        if depth != 1 or color != 0 or interlaced:
            raise WrongPatterns(f"{name} has {depth} bits a pixel; give a greyscale PNG of 1 bit")
        if (height, width) != tuple(shape):
            raise WrongPatterns(f"{name} is {width}x{height}, the patterns are {shape[1]}x{shape[0]}")
        data, at = b"", 8
        while at < len(content):
            size, kind = struct.unpack(">I4s", content[at : at + 8])
            data += content[at + 8 : at + 8 + size] if kind == b"IDAT" else b""
            at += 12 + size
        row = -(-width // 8)
        raw = zlib.decompressobj().decompress(data, height * (row + 1))
        lines = np.frombuffer(raw, np.uint8).reshape(height, row + 1)
    except WrongPatterns:
        raise
    except (ValueError, struct.error, zlib.error):
        raise WrongPatterns(f"{name} is damaged") from None
    return np.unpackbits(_unfiltered(lines), axis=1)[:, :width]


def _unfiltered(lines: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """PNG's five filters undone, on bytes: (height, 1 + row) to (height, row)."""
    before = [0] * (lines.shape[1] - 1)
    found = []
    for line in lines.tolist():
        kind = line[0]
        made: list[int] = []
        for i, byte in enumerate(line[1:]):
            left, up, corner = (made[-1] if i else 0), before[i], (before[i - 1] if i else 0)
            guess = left + up - corner
            paeth = min((left, up, corner), key=lambda each: abs(guess - each))
            made.append((byte + (0, left, up, (left + up) // 2, paeth)[kind]) & 255)
        found.append(made)
        before = made
    return np.array(found, np.uint8)


def main() -> int:
    """The command line; see the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", nargs="?", help="an .npy image: uint8 (H, W) or (H, W, C), or light from 0 to 1")
    parser.add_argument("--photons", type=float, help="electrons of a white pixel in an exposure")
    parser.add_argument("--read", type=float, default=0.0, help="read noise")
    parser.add_argument("--adc-bits", type=int, help="bits of the ADC")
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    options = parser.parse_args()
    try:
        patterns = load(pathlib.Path(__file__).resolve().parent)
        if options.image is None:
            count, shown = len(patterns.values), len(patterns.frames)
            print(f"{count} patterns of {patterns.about['width']}x{patterns.about['height']}, {shown} frames\nok")
            return 0
        image = np.load(options.image, allow_pickle=False)
        light = image / 255 if image.dtype == np.uint8 else image
        light = light.transpose(2, 0, 1) if light.ndim == 3 else light
        generator = np.random.default_rng(options.seed)
        found = patterns.measure(light, options.photons, options.read, options.adc_bits, generator)
    except WrongPatterns as error:
        print(f"error: {error}", file=sys.stderr)
        return 4
    out = pathlib.Path(options.image).with_suffix(".measured.npy")
    np.save(out, found)
    print(f"wrote {out.name}: {found.shape}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
