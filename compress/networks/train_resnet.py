"""Train the built-in ``resnet`` on digits and write the weights that the package ships.

    python -m compress.networks.train_resnet [OUT.safetensors]

Takes two or three minutes on two cores. Everything is fixed: seed, order, augmentation and the number
of threads; the same versions on the same kind of processor give the same file. The 500 evaluation
images are looked at once, after training, and choose nothing.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save

from compress import data
from compress.data.augment import Affine
from compress.data.digits import MEAN, STD
from compress.networks.cifar_resnet import CifarResNet, resnet
from compress.serial import write_atomic
from compress.training import Recipe, evaluate, fit

SEED = 0
THREADS = 2
RECIPE = Recipe(epochs=40, lr=0.1, batch_size=64, weight_decay=5e-4, warmup=0.1, label_smoothing=0.05)
AUGMENT = Affine(degrees=10.0, shift=0.0625, scale=0.1)


def train(recipe: Recipe = RECIPE) -> CifarResNet:
    """A newly initialized ``resnet``, trained by ``recipe``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = resnet()
    digits = data.load("digits", mean=MEAN, std=STD)
    generator = torch.Generator().manual_seed(SEED)
    fit(
        model,
        digits.train,
        recipe,
        generator=generator,
        augment=AUGMENT,
        progress=lambda message: print(message, flush=True),
    )
    return model


def main() -> None:
    """Train, write, and print the accuracy."""
    default = Path(__file__).parent / "weights" / "resnet.safetensors"
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else default
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(THREADS)
    start = time.perf_counter()
    model = train()
    seconds = time.perf_counter() - start
    # The count of batches that batch norm has seen has no use after training.
    write_atomic(out, save({k: v for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}))
    correct, n = evaluate(model, data.load("digits", mean=MEAN, std=STD).evaluate)
    print(f"{out}: {out.stat().st_size} bytes, {100 * correct / n:.2f}% of {n} digits, {seconds:.0f} s")


if __name__ == "__main__":
    main()
