"""Train a small network, then train it on with 4-bit weights in a loop of one's own.

    python examples/quantizing_while_training.py

takes about ten seconds on one core.
"""

import torch
from torch import nn
from torch.nn import functional as F

import compress
from compress import data
from compress.training import Recipe, evaluate, fit


class Digits(nn.Module):
    """Any network: three convolutions, batch norms, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
            *(nn.Conv2d(16, 24, 3, stride=2, padding=1), nn.BatchNorm2d(24), nn.ReLU()),
        )
        self.classify = nn.Linear(24, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classify(self.features(x).mean((2, 3)))


digits = data.load("digits", mean=(0.5,), std=(0.5,))
generator = torch.Generator().manual_seed(0)
torch.manual_seed(0)
model = Digits()
fit(model, digits.train, Recipe(epochs=8, lr=0.1, batch_size=32), generator=generator)
right, n = evaluate(model, digits.evaluate)
print(f"trained in float: {100 * right / n:.1f}%")

epochs, batch = 4, 32
steps = epochs * -(-digits.train.n // batch)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

with compress.attach(
    model, optimizer, target="raspberry-pi-4", weight_bits=4, steps=steps, data=digits, warmup=0.0
) as session:
    for epoch in range(epochs):
        model.train()
        for images, labels in digits.train.batches(batch, generator):
            session.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            session.step()  # in place of optimizer.step()
            scheduler.step()
        right, n = evaluate(model, digits.evaluate)
        print(f"epoch {epoch + 1}: {100 * right / n:.1f}%, {session.quantized_layers} layers quantized")

quantized = session.result()
right, n = evaluate(quantized.simulation, digits.evaluate)
print(f"the quantized network: {100 * right / n:.1f}%")
print(f"average weight bits: {quantized.report.after.weight_bits:.2f}")
