"""A network and its data for the command line:

compress --model examples/factory.py:network --data examples/factory.py:stripes --target raspberry-pi-4 --epochs 2
"""

import numpy as np
import torch
from torch import nn

INPUT_SHAPE = (3, 24, 24)


def network() -> nn.Module:
    """A small network, trained here in a moment; yours would load its weights."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4)),
    )
    (images, labels), _ = stripes()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for step in range(150):
        part = slice(64 * step % 512, 64 * step % 512 + 64)
        loss = nn.functional.cross_entropy(model(torch.from_numpy(images[part])), torch.from_numpy(labels[part]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def stripes() -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Noisy stripes in four directions: ((train images, labels), (evaluation images, labels))."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:24, :24]
    directions = np.stack([x, y, x + y, x - y])
    labels = np.arange(832) % 4
    phase = rng.uniform(0, 6.28, (832, 1, 1))
    waves = np.sin(directions[labels] * 0.9 + phase)[:, None] + rng.normal(0, 0.5, (832, 3, 24, 24))
    images = waves.astype(np.float32)
    return (images[:512], labels[:512]), (images[512:], labels[512:])
