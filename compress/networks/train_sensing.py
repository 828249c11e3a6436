"""Train the built-in ``sensing`` at its four ratios and write the weights that the package ships.

    COMPRESS_DATA_DIR=DIR python -m compress.networks.train_sensing [RATIO ...] [--out FOLDER] [--steps N]

DIR holds ``BSD400`` and ``T91`` (and ``Set11``, for the figure at the end), itself or in ``recon``. About eight
minutes a ratio on two cores that multiply in bfloat16. Seed, order and number of threads are fixed; the same versions
on the same kind of processor give the same file. Set11 is looked at once, after training, and chooses nothing. A
training that was stopped goes on from its checkpoint, a ``.pt`` beside the file.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from compress.data.image_files import decode, images_in
from compress.data.photographs import find_set11
from compress.errors import BadData, CompressError
from compress.networks.sensing import Reconstruction, sensing
from compress.networks.sensing_training import Schedule, train
from compress.networks.sensing_weights import FOLDER, RATIOS, file_name, load_packed, packed
from compress.quality import psnr
from compress.quantize.sensing_start import start
from compress.serial import write_atomic

SEED = 0
THREADS = 2
STEPS = 3000


def images(folder: Path) -> list[Tensor]:
    """The luma of the images in a folder, (H, W) float32 in [0, 1] each."""
    return [decode(str(folder), file, 1)[0].float() / 255 for file in images_in(folder)]


def made(ratio: float, training: Sequence[Tensor], steps: int, checkpoint: Path) -> Reconstruction:
    """The network of that ratio, trained."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        network = sensing(ratio=ratio)
    found = start(network.sensing, training)
    train(
        network,
        training,
        Schedule(steps=steps),
        seed=SEED,
        statistics=found,
        checkpoint=checkpoint,
        progress=lambda message: print(f"{ratio:g}: {message}", flush=True),
    )
    return network


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, write, and print each network's PSNR on Set11 as its file has it."""
    parser = argparse.ArgumentParser(prog="python -m compress.networks.train_sensing", description=__doc__)
    parser.add_argument("ratios", nargs="*", type=float, default=list(RATIOS), metavar="RATIO")
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--steps", type=int, default=STEPS)
    asked = parser.parse_args(arguments)
    torch.set_num_threads(THREADS)
    try:
        home = find_set11(Path(os.environ.get("COMPRESS_DATA_DIR", ".")))
        if home is None:
            raise BadData("set11", "there are no Set11 and BSD400", "name their folder in COMPRESS_DATA_DIR")
        training = [image for name in ("BSD400", "T91") if (home / name).is_dir() for image in images(home / name)]
        for ratio in asked.ratios:
            path = asked.out / file_name(ratio)
            network = made(ratio, training, asked.steps, path.with_suffix(".pt"))
            write_atomic(path, packed(network))
            load_packed(network, path)
            found = [_psnr(network, image) for image in images(home / "Set11")]
            print(f"{path}: {path.stat().st_size} bytes, {sum(found) / len(found):.2f} dB on Set11")
    except CompressError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _psnr(network: Reconstruction, image: Tensor) -> float:
    with torch.no_grad():
        made = network(image[None, None])
    return float(psnr(made.double().mul(255).clamp(0, 255), image[None, None].double() * 255))


if __name__ == "__main__":
    sys.exit(main())
