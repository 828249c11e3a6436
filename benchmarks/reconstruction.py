"""What the benchmarks of sensing share: the images, the score, trained networks that are kept, cases one at a time.

A case that is finished is kept as a file, and a training as a checkpoint and, when it is through, as the network's
weights, in ``$COMPRESS_SENSING_FOLDER`` (``runs/sensing`` by default), so that a run that is stopped goes on where it
was. ``$COMPRESS_SENSING_CASES`` names the cases to make, separated by commas, each as the program prints them; all by
default. The rows of a run are those of every case that is finished by then.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import common
from compress.serial import write_json

FOLDER = "COMPRESS_SENSING_FOLDER"
CASES = "COMPRESS_SENSING_CASES"
STEPS = "COMPRESS_SENSING_STEPS"
RATIOS = (0.01, 0.04, 0.1, 0.25)
SEED = 0
SCHEDULES: dict[str, dict[str, Any]] = {"recursive": {"steps": 3000}, "unfolded": {"steps": 6000}}
"""Less than half an hour each on two cores that multiply in bfloat16; the recursive one's are those of
:mod:`compress.networks.train_sensing`."""


def folder() -> Path:
    return Path(os.environ.get(FOLDER) or common.REPOSITORY / "runs" / "sensing")


def steps(network: str) -> int:
    """Of training; an environment variable has a say, for a first look."""
    return int(os.environ.get(STEPS) or SCHEDULES[network]["steps"])


def each_case(benchmark: str, names: Sequence[str], make: Callable[[str], list[common.Row]]) -> list[common.Row]:
    """The rows of all finished cases, in the order of ``names``, those that were asked for made now.

    Raises:
        ValueError: an unknown case was asked for.
    """
    given = os.environ.get(CASES)
    asked = [name.strip() for name in given.split(",")] if given else list(names)
    unknown = [name for name in asked if name not in names]
    if unknown:
        raise ValueError(f"{CASES}: there is no case {unknown[0]!r}; there are: {', '.join(names)}")
    rows: list[common.Row] = []
    for name in names:
        kept = folder() / benchmark / f"{name.replace(' ', '-')}.json"
        if kept.is_file():
            rows += json.loads(kept.read_text(encoding="utf-8"))
        elif name in asked:
            print(f"{benchmark}: {name}", flush=True)
            made = make(name)
            common.print_rows(made)
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_json(kept, made)
            rows += made
    return rows


def images(*names: str) -> list[Any]:
    """The luma of all images of these folders of ``recon``, (H, W) float32 in [0, 1] each."""
    from compress.data.image_files import decode, images_in

    home = (common.data_dir() or Path()) / "recon"
    return [decode(name, file, 1)[0].float() / 255 for name in names for file in images_in(home / name)]


def training_images() -> list[Any]:
    return images("BSD400", "T91")


def test_images() -> list[Any]:
    return images("Set11")


def score(recover: Callable[[Any], Any], pictures: Sequence[Any]) -> tuple[float, float]:
    """PSNR in dB and SSIM of ``recover`` (N, 1, H, W) -> the same, the means over the pictures.

    As the literature has it: luma, whole images, the result clipped to 0 to 255, not rounded.
    """
    import torch

    from compress.quality import psnr, ssim

    found = []
    for picture in pictures:
        with torch.no_grad():
            made = recover(picture[None, None]).double().mul(255).clamp(0, 255)
        wanted = picture[None, None].double() * 255
        alike = ssim(made, wanted)
        assert alike is not None
        found.append((float(psnr(made, wanted)), float(alike)))
    return (sum(p for p, _ in found) / len(found), sum(s for _, s in found) / len(found))


def trained(network: Any, name: str, kind: str, training: Sequence[Any], found: Any, **more: Any) -> Any:
    """Train ``network``, whose sensing layer has its closed form, or go on with it; kept until the case is finished."""
    import torch

    from compress.networks.sensing_training import Schedule, train

    device = "cuda" if torch.cuda.is_available() else "cpu"
    made = train(
        network,
        training,
        Schedule(**{"steps": steps(kind), **more}),
        seed=SEED,
        device=device,
        statistics=found,
        checkpoint=folder() / f"{name.replace(' ', '-')}.pt",
        progress=lambda message: print(message, flush=True),
    )
    network.to("cpu")
    return made


def macs(network: Any, side: int = 256) -> tuple[int, int, int]:
    """Multiply-accumulates for an image of that size, real-valued parameters, and bits of the patterns."""
    import torch

    from compress.graph import costs
    from compress.graph.trace import trace

    size = costs.size(trace(network, (torch.zeros(1, network.sensing.channels, side, side),)))
    patterns = network.sensing.weight.numel()
    return size.macs, sum(p.numel() for p in network.parameters()) - patterns, patterns


def device() -> str:
    """What computes, in words."""
    return common.gpu() or f"{common.processor()}, {common.cores()} cores"
