"""The files of the built-in reconstruction networks: what is binary in bits, what is linear in bytes, the rest in half.

A ``.safetensors`` with

    sensing.bits     uint8 (m, ceil(n / 8)): the patterns, a one a bit, the first pixel in the highest bit
    sensing.factors  float32 (m,): the factors of the measurements
    sensing.level    float32 (): what is taken off the light
    sensing.inner    float32 (): where differences of measurements are split; earlier files have none
    sensing.expand   int8 (n, m), and sensing.expand.scale float32 (m,): the linear estimate, a scale a pattern
    others           float16, by their names in the network

Rounding so costs less than 0.01 dB where PSNR is 35 dB: the scales are the columns', which differ most.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from compress.checkpoints import check_finite, read_checkpoint
from compress.errors import BadWeights
from compress.networks.sensing import Reconstruction
from compress.quantize.sensing_patterns import INNER

FOLDER = Path(__file__).parent / "weights"
RATIOS = (0.01, 0.04, 0.1, 0.25)
"""Of the networks whose weights come along."""


def shipped(ratio: float) -> Path | None:
    """The file of the recursive network of that ratio; None where none comes along."""
    known = next((each for each in RATIOS if abs(each - ratio) < 1e-9), None)
    if known is None:
        return None
    path = FOLDER / file_name(known)
    return path if path.is_file() else None


def file_name(ratio: float) -> str:
    """``sensing-10.safetensors`` for 0.1."""
    return f"sensing-{round(100 * ratio):02d}.safetensors"


def packed(network: Reconstruction) -> bytes:
    """The file of ``network``, whose patterns aren't being learned any more."""
    layer = network.sensing
    bits = np.packbits((layer.signs() > 0).cpu().numpy(), axis=1)
    matrix = layer.expand.weight.detach().cpu()[:, :, 0, 0]
    scale = matrix.abs().amax(0).clamp_min(1e-12) / 127
    found = {
        "sensing.bits": torch.from_numpy(bits),
        "sensing.factors": layer.factors().cpu(),
        "sensing.level": layer.level.detach().cpu(),
        "sensing.inner": layer.inner.cpu(),
        "sensing.expand": (matrix / scale).round().to(torch.int8),
        "sensing.expand.scale": scale,
    }
    for name, value in _others(network).items():
        found[name] = value.detach().cpu().half()
    return save({name: value.contiguous() for name, value in found.items()})


def load_packed(network: Reconstruction, path: str | Path) -> None:
    """Put the weights of a file of :func:`packed` into ``network``, in place.

    Raises:
        BadWeights: the file can't be read, is of another ratio, block or network, or holds NaN.
    """
    state = read_checkpoint(path)
    layer, others = network.sensing, _others(network)
    bits = state.get("sensing.bits")
    if bits is None or bits.dtype != torch.uint8 or bits.dim() != 2:
        raise BadWeights(str(path), "it holds no patterns", "give a file that compress.networks.sensing_weights wrote")
    wanted = (layer.measurements, -(-layer.pixels // 8))
    if tuple(bits.shape) != wanted:
        raise BadWeights(
            str(path),
            f"it has {bits.shape[0]} patterns of {bits.shape[1]} bytes, the network {wanted[0]} of {wanted[1]}",
            "give the weights of the same ratio and block",
        )
    state.setdefault("sensing.inner", torch.tensor(INNER))
    shapes = {
        "sensing.factors": layer.shift.shape,
        "sensing.level": layer.level.shape,
        "sensing.inner": layer.inner.shape,
        "sensing.expand": layer.expand.weight.shape[:2],
        "sensing.expand.scale": layer.shift.shape,
        **{name: value.shape for name, value in others.items()},
    }
    wrong = [name for name, shape in shapes.items() if name not in state or state[name].shape != shape]
    extra = [name for name in state if name not in shapes and name != "sensing.bits"]
    if wrong or extra:
        name = (wrong or extra)[0]
        raise BadWeights(str(path), f"{name} doesn't fit the network", "give the weights of the very network")
    check_finite(state, str(path))
    ones = np.unpackbits(bits.numpy(), axis=1, count=layer.pixels)
    layer.set_patterns(torch.from_numpy(ones.astype(bool)).view(layer.measurements, *layer.size))
    layer.set_range(state["sensing.factors"].float(), float(state["sensing.level"]))
    layer.set_inner(float(state["sensing.inner"]))
    with torch.no_grad():
        layer.expand.weight.copy_((state["sensing.expand"].float() * state["sensing.expand.scale"])[:, :, None, None])
        for name, value in others.items():
            value.copy_(state[name].float())


def _others(network: Reconstruction) -> dict[str, Tensor]:
    own = {"sensing.weight", "sensing.shift", "sensing.expand.weight"}
    return {name: value for name, value in network.named_parameters() if name not in own}
