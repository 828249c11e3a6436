"""The handwritten digits that scikit-learn ships, at 32x32 pixels.

The 1,797 images of 8x8 pixels with values 0 to 16 are enlarged by bilinear interpolation (pixel
centres at half integers, border repeated). Every weight is a multiple of 1/8, so the arithmetic is
done in integers and gives the same uint8 images everywhere. ``digits.json`` lists the 500 images that
are for evaluation; the other 1,297 are for training. The list was drawn once by scikit-learn's
``train_test_split(range(1797), test_size=500, stratify=labels, random_state=0)``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SIDE = 32
# Of the training images, x / 255, rounded.
MEAN = (0.305,)
STD = (0.324,)


def enlarge(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Images (N, 8, 8) with values 0 to 16 to (N, 32, 32) with values 0 to 255."""
    import numpy as np

    # Output pixel i has its centre at i / 4 - 3 / 8 of the small image's pixels.
    position = 2 * np.arange(SIDE) - 3
    low, fraction = position // 8, position % 8
    matrix = np.zeros((SIDE, 8), dtype=np.int64)
    np.add.at(matrix, (np.arange(SIDE), np.clip(low, 0, 7)), 8 - fraction)
    np.add.at(matrix, (np.arange(SIDE), np.clip(low + 1, 0, 7)), fraction)
    sums = matrix @ images.astype(np.int64) @ matrix.T
    largest = 16 * 8 * 8
    return ((2 * 255 * sums + largest) // (2 * largest)).astype(np.uint8)


def arrays() -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    """Images (1797, 1, 32, 32), labels (1797,) and the ascending indices of the evaluation images (500,)."""
    import numpy as np
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = enlarge(digits.images.astype(np.uint8))[:, None]
    chosen = json.loads(Path(__file__).with_name("digits.json").read_text())["evaluate"]
    return images, digits.target.astype(np.int64), np.array(chosen, dtype=np.int64)
