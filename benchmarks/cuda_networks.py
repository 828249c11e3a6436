"""ResNet-18 and -50 (random weights, 224x224) on an NVIDIA GPU: our CUDA modules beside torch, at batch 1, 8 and 64.

All of one network and batch are timed in turns, on tensors that lie on the GPU, one call after the other with a
synchronization behind each; medians of the turns. And a trained ResNet-20 in int8 on CIFAR-10: the module against the
integer reference, which it has to equal bit for bit.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import common, pruned

if TYPE_CHECKING:
    from compress.export.cuda_module import CudaModule
    from compress.types import State, Target

BATCHES = (1, 8, 64)
SIZE, CLASSES = 224, 1000
ROUNDS, CALLS, WARM_UP = 15, 5, 10
BEST_PEER = "torch.compile, float16, channels last"
OURS = ("ours, int8", "ours, float16")
CALIBRATION, COMPARED = 512, 200
"""Images; those whose outputs are set beside the reference's, which is slow."""


class Block(nn.Module):
    """A residual block: two 3x3 convolutions, or 1x1, 3x3, 1x1 with four times as many channels at the end."""

    def __init__(self, channels: int, width: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        out = 4 * width if bottleneck else width
        shapes = [(channels, width, 1, 1), (width, width, 3, stride), (width, out, 1, 1)]
        if not bottleneck:
            shapes = [(channels, width, 3, stride), (width, width, 3, 1)]
        layers: list[nn.Module] = []
        for i, o, kernel, s in shapes:
            layers += [nn.Conv2d(i, o, kernel, s, kernel // 2, bias=False), nn.BatchNorm2d(o), nn.ReLU()]
        self.body = nn.Sequential(*layers[:-1])
        same = stride == 1 and channels == out
        down = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        self.shortcut: nn.Module = nn.Identity() if same else down

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


def resnet(depth: int) -> nn.Module:
    """ResNet-18 or -50 for ImageNet (He et al. 2016), random weights of a fixed seed."""
    counts, bottleneck = {18: ((2, 2, 2, 2), False), 50: ((3, 4, 6, 3), True)}[depth]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
        layers.append(nn.MaxPool2d(3, 2, 1))
        channels = 64
        for stage, count in enumerate(counts):
            for number in range(count):
                width = 64 << stage
                layers.append(Block(channels, width, 2 if stage and not number else 1, bottleneck))
                channels = 4 * width if bottleneck else width
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES)]
        return nn.Sequential(*layers).eval()


def target() -> Target:
    """``gpu`` with the architecture of the one that is here."""
    from compress import targets

    major, minor = torch.cuda.get_device_capability()
    return replace(targets.load("gpu"), gpu=f"sm_{major}{minor}")


def module_of(state: State, example: Tensor, batch: int, folder: Path) -> CudaModule:
    """A network's CUDA module for so many inputs at a time."""
    from compress.export import cuda_module
    from compress.export.lowering import lower
    from compress.export.onnx import serialize

    return cuda_module.build(lower(serialize(state, example)), target(), folder, batch)


def opened(module: CudaModule) -> Callable[[Tensor], Callable[[], Any]]:
    """A module on the GPU: images (N, C, H, W) are put there as it wants them; gives a run of it, its output flat."""
    import tvm
    from tvm import relax

    device = tvm.cuda(0)
    main = relax.VirtualMachine(tvm.runtime.load_module(str(module.path)), device)["main"]

    def on(images: Tensor) -> Callable[[], Any]:
        given = tvm.runtime.tensor(laid(module, images), device)

        def run() -> Any:
            out = main(given)
            device.sync()
            return out

        return run

    return on


def laid(module: CudaModule, images: Tensor) -> np.ndarray:
    """Images as a module takes them: channels last, flat, float32 or on the grid of the network's input."""
    from compress.integer import reference
    from compress.integer.program import LIMITS

    (name,) = module.program.inputs
    tensor = module.program.tensors[name]
    x = images.permute(0, 2, 3, 1).numpy().astype(np.float32)
    if tensor.dtype != "float32":
        x = reference.quantized(x, tensor.scale, tensor.zero_point, *LIMITS[tensor.dtype])
    return np.ascontiguousarray(x.astype(tensor.dtype).ravel())


def torches(network: nn.Module, images: Tensor) -> dict[str, Callable[[], Any]]:
    """torch's own ways."""
    on_gpu = images.cuda()
    half = images.half().cuda().to(memory_format=torch.channels_last)
    plain = resnet_on(network, torch.float32)
    fast = resnet_on(network, torch.float16).to(memory_format=torch.channels_last)
    compiled = torch.compile(fast)
    jobs = {
        "torch, float32": lambda: plain(on_gpu),
        "torch, float16, channels last": lambda: fast(half),
        BEST_PEER: lambda: compiled(half),
    }

    def whole(job: Callable[[], Any]) -> Callable[[], Any]:
        def run() -> Any:
            with torch.inference_mode():
                out = job()
            torch.cuda.synchronize()
            return out

        return run

    return {name: whole(job) for name, job in jobs.items()}


def resnet_on(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy on the GPU."""
    import copy

    return copy.deepcopy(network).to("cuda", dtype)


def interleaved(jobs: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
    """Median seconds of each, all in turns."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for run in jobs.values():
        for _ in range(WARM_UP):
            run()
    names = list(jobs)
    for number in range(ROUNDS):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            for _ in range(CALLS):
                start = time.perf_counter()
                jobs[name]()
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(found) for name, found in times.items()}


def networks() -> list[common.Row]:
    """A row for each network, batch and way."""
    from compress.quantize import quantize
    from compress.types import State

    rows: list[common.Row] = []
    for depth in (18, 50):
        network = resnet(depth)
        images = torch.randn(max(BATCHES), 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
        quantized = quantize(network, images[:16], weight_bits=8, method="uniform", target=target()).state
        for batch in BATCHES:
            with tempfile.TemporaryDirectory() as folder:
                some = images[:batch]
                states = dict(zip(OURS, (quantized, State(network)), strict=True))
                jobs = torches(network, some)
                for number, (name, state) in enumerate(states.items()):
                    jobs[name] = opened(module_of(state, images[:2], batch, Path(folder) / str(number)))(some)
                found = interleaved(jobs)
            rows += [row(f"ResNet-{depth}", batch, name, seconds, found[BEST_PEER]) for name, seconds in found.items()]
            common.print_rows(rows[-len(found) :])
    return rows


def row(network: str, batch: int, way: str, seconds: float | None, peer_s: float | None) -> common.Row:
    return {
        "network": network,
        "batch_images": batch,
        "way": way,
        "ms": None if seconds is None else 1e3 * seconds,
        "images_per_s_over_compiled": None if seconds is None or peer_s is None else peer_s / seconds,
        "accuracy_percent": None,
        "other_outputs_images": None,
    }


def accuracy() -> list[common.Row]:
    """A trained ResNet-20 in int8: the module on the test images, and how many outputs aren't the reference's."""
    from compress import data, models
    from compress.integer import reference
    from compress.quantize import quantize

    batch = 100
    with common.cifar10() as folder, tempfile.TemporaryDirectory() as own:
        weights = next((common.data_dir() or Path()).glob("weights/cifar10-akamaster/resnet20-*.th"))
        loaded = models.load("resnet20", weights=str(weights))
        dataset = data.load(f"cifar10:{folder}", mean=loaded.mean, std=loaded.std)
        some = dataset.train.inputs(CALIBRATION, torch.Generator().manual_seed(0))
        x, y = (torch.cat(parts) for parts in zip(*dataset.evaluate.batches(batch), strict=True))
        state = quantize(loaded.model.eval(), some, weight_bits=8, target=target()).state
        module = module_of(state, x[:2], batch, Path(own))
        on = opened(module)
        found = np.concatenate([on(part)().numpy().reshape(batch, -1) for part in x.split(batch)])
        (name,), (result,) = module.program.inputs, module.program.outputs
        shape = module.program.tensors[name].shape
        wrong = 0
        for k in range(0, len(x), len(x) // COMPARED):
            wanted = reference.run(module.program, {name: laid(module, x[k : k + 1]).reshape(shape)})[result]
            wrong += not np.array_equal(found[k], wanted.ravel())
    made = row("ResNet-20 on CIFAR-10", batch, OURS[0], None, None)
    right = 100 * float((found.argmax(1) == y.numpy()).mean())
    return [made | {"accuracy_percent": right, "other_outputs_images": wrong}]


def measure() -> list[common.Row]:
    return networks() + accuracy()


def section(document: Mapping[str, Any]) -> str:
    rows = [each for each in document["rows"] if each["ms"] is not None]
    text = (
        "Random weights, 224x224; calls one after the other on tensors that lie on the GPU, a synchronization behind "
        "each, all ways in turns. Ours are CUDA modules on TVM's runtime.\n\n"
    )
    for network in dict.fromkeys(each["network"] for each in rows):
        ours = max(
            pruned.find(rows, network=network, batch_images=1, way=way)["images_per_s_over_compiled"] for way in OURS
        )
        kept = "kept" if ours >= 1 else "missed"
        text += f"- {network}, batch 1: {ours:.2f} times as fast as {BEST_PEER} (target 1): {kept}\n"
    for each in document["rows"]:
        if each["accuracy_percent"] is not None:
            text += (
                f"- {each['network']}, int8: {each['accuracy_percent']:.2f}%; outputs other than the reference's: "
                f"{each['other_outputs_images']} of those compared\n"
            )
    header = ["network", "batch", "way", "ms", "times as fast as torch.compile"]
    return (
        text
        + "\n"
        + common.markdown_table(
            header,
            [
                [
                    each["network"],
                    str(each["batch_images"]),
                    each["way"],
                    common.shown(each["ms"], 3),
                    common.shown(each["images_per_s_over_compiled"], 2),
                ]
                for each in rows
            ],
            text_columns=3,
        )
    )


def _compiler() -> str | None:
    """Why CUDA can't be compiled; None if it can."""
    from compress.errors import BadInput
    from compress.export.cuda_module import find_compiler

    try:
        find_compiler()
    except BadInput as error:
        return error.sentence
    return None


BENCHMARK = common.Benchmark(
    name="cuda_networks",
    title="ResNet-18 and -50 on an NVIDIA GPU: CUDA modules beside torch",
    needs=(
        common.a_gpu(),
        common.data("cifar10", "CIFAR-10"),
        common.data("weights/cifar10-akamaster", "akamaster's ResNet-20"),
        common.Need("CUDA compiler", _compiler),
    ),
    packages=("torch", "apache-tvm", "numpy"),
    measure=measure,
    section=section,
    minutes=15,
)

if __name__ == "__main__":
    common.main(BENCHMARK)
