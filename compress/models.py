"""``--model``: from a word or a path to a network with its weights, in evaluation mode."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.checkpoints import check_finite, digest, load_checkpoint, read_checkpoint
from compress.errors import BadInput, BadWeights, UnknownName
from compress.usercode import UserCode, guarded, is_user_code, load_user_code
from compress.zoo import LOADERS, Asked, Made

if TYPE_CHECKING:
    from torch import nn

    from compress.networks import NetworkInfo

RANDOM = "random"
HINT = "or timm:NAME, torchvision:NAME, hf:NAME, FILE.py:FUNCTION, FILE.pt2"


@dataclass(frozen=True)
class LoadedModel:
    """A network that is ready to be compressed.

    Attributes:
        name: as the user gave it.
        model: on the CPU, float32, in evaluation mode, images (N, C, H, W) to logits (N, classes) or images.
        input_shape: channels, height, width; None if only the data can tell.
        mean, std: of its inputs, ``(x / 255 - mean) / std``; None for ImageNet's.
        num_classes: outputs; None if not known, or if it makes images.
        builtin: True for the networks of :data:`compress.networks.NETWORKS`.
        default_data: the data set to use where ``--data`` isn't given; None if there is none.
        sha256: of the parameters and buffers.
        block: of a network that takes images of any size which are whole blocks, the block's side; None for the others.
        trained: False for such a network where no weights came along for its ratio.
    """

    name: str
    model: nn.Module
    input_shape: tuple[int, int, int] | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    num_classes: int | None
    builtin: bool
    default_data: str | None
    sha256: str
    block: int | None = None
    trained: bool = True


def names() -> tuple[str, ...]:
    """The names of the built-in networks."""
    from compress.networks import NETWORKS

    return tuple(info.name for info in NETWORKS)


def load(
    spec: str,
    *,
    weights: str | None = None,
    num_classes: int | None = None,
    in_channels: int | None = None,
    seed: int = 0,
    sensing: float | None = None,
) -> LoadedModel:
    """Load a network by its name or path.

    ``timm:NAME``, ``torchvision:NAME`` and ``hf:NAME`` need those packages. ``FILE.py:FUNCTION`` is
    called without arguments (or with those of ``num_classes`` and ``in_channels`` that it takes and
    that are given) and returns a module; the file or the module may say ``input_shape``, ``mean`` and
    ``std``. A ``.pt2`` is what ``torch.export.save`` wrote.

    Args:
        spec: a built-in name, or as above.
        weights: a ``.safetensors`` file or one of ``torch.save``; the word ``random`` leaves the
            network as it was initialized, which is enough to study latency. None takes the weights
            that come with the network.
        num_classes: outputs, if other than the network's usual.
        in_channels: image channels, if other than the network's usual.
        seed: of the initial weights.
        sensing: measurements a pixel, for the network that makes images of measurements; others don't read it.

    Raises:
        UnknownName: there is no such network.
        BadWeights: the checkpoint doesn't fit, isn't safe, or holds NaN.
        MissingExtra: the package that the name asks for isn't installed.
        BadInput: weights are needed, the file is damaged, or the user's code raised.
    """
    from compress.graph.module import in_evaluation_mode

    prefix, colon, rest = spec.partition(":")
    asked = Asked(spec, rest if colon else spec, weights, num_classes, in_channels, sensing)
    with _seeded(seed):
        made = _loader(prefix if colon else "", spec)(asked)
    model = in_evaluation_mode(made.model)
    if weights is not None and weights != RANDOM:
        _checkpoint(made, model, weights)
    check_finite(model.state_dict(), weights or spec)
    outputs = _outputs(spec, model, made.input_shape)
    if num_classes is not None and outputs is not None and outputs != num_classes:
        raise BadInput(f"model {spec}: it has {outputs} outputs, {num_classes} were asked for; leave that option out")
    return LoadedModel(
        spec,
        model,
        made.input_shape,
        made.mean,
        made.std,
        outputs,
        made.builtin,
        made.default_data,
        digest(model),
        made.block,
        made.trained,
    )


def _loader(prefix: str, spec: str) -> Callable[[Asked], Made]:
    if is_user_code(spec):
        return _user
    if prefix in LOADERS:
        return LOADERS[prefix]
    if spec.endswith(".pt2"):
        return _exported
    return _builtin


def _builtin(asked: Asked) -> Made:
    from compress.networks import NETWORKS

    info = next((info for info in NETWORKS if info.name == asked.spec), None)
    if info is None:
        raise UnknownName("model", asked.spec, names(), HINT)
    channels, height, width = info.input_shape
    channels = asked.in_channels or channels
    if info.block is not None:
        return _reconstruction(asked, info, channels)
    model = info.factory(num_classes=asked.num_classes or info.num_classes, in_channels=channels)
    if asked.weights is None:
        usual = channels == info.input_shape[0] and asked.num_classes in (None, info.num_classes)
        if info.weights is None or not usual:
            why = "has no weights of its own" if info.weights is None else "has no weights for that shape"
            raise BadInput(f"model {asked.spec} {why}; give --weights FILE, or --weights random to study latency")
        load_checkpoint(model, info.weights)
    mean, std = (v if channels == info.input_shape[0] else None for v in (info.mean, info.std))
    return Made(model, (channels, height, width), mean, std, True, info.data)


def _reconstruction(asked: Asked, info: NetworkInfo, channels: int) -> Made:
    """The network that makes images of measurements, at the ratio that was asked for."""
    from compress.networks.sensing import Reconstruction
    from compress.networks.sensing_weights import load_packed

    there = ", ".join(f"{ratio:g}" for ratio in info.by_ratio)
    if asked.sensing is None:
        come = f"; trained weights come along for {there}" if there else ""
        raise BadInput(f"model {info.name}: give --sensing RATIO, measurements a pixel, such as 0.1{come}")
    model = info.factory(in_channels=channels, ratio=asked.sensing)
    assert isinstance(model, Reconstruction)
    file = info.by_ratio.get(asked.sensing) if channels == info.input_shape[0] else None
    if asked.weights is None and file is not None:
        load_packed(model, file)
    mean, std = info.mean * channels, info.std * channels
    trained = asked.weights is not None or file is not None
    return Made(model, None, mean, std, True, info.data, block=info.block, trained=trained)


def _checkpoint(made: Made, model: nn.Module, weights: str) -> None:
    """Load the user's file, which for the reconstruction network may be of the packed kind that comes along."""
    if made.block is not None and "sensing.bits" in read_checkpoint(weights):
        from compress.networks.sensing import Reconstruction
        from compress.networks.sensing_weights import load_packed

        assert isinstance(model, Reconstruction)
        load_packed(model, weights)
        return
    load_checkpoint(made.inner or model, weights)


def _user(asked: Asked) -> Made:
    from torch import nn

    code = load_user_code(asked.spec, "model")
    made = _call(code, asked)
    if not isinstance(made, nn.Module):
        raise BadInput(
            f"model {asked.spec}: it gives a {type(made).__name__}; return a torch.nn.Module from the function"
        )
    shape = _said(code, made, "input_shape")
    if shape is not None and (len(shape) != 3 or not all(isinstance(s, int) and s > 0 for s in shape)):
        raise BadInput(f"model {asked.spec}: input_shape is {shape}; give (channels, height, width)")
    mean, std = (_said(code, made, key) for key in ("mean", "std"))
    return Made(made.cpu().float(), shape, mean, std)


def _call(code: UserCode, asked: Asked) -> Any:
    from torch import nn

    if isinstance(code.value, nn.Module) or not callable(code.value):
        return code.value
    arguments = asked.changes
    with guarded(f"model {asked.spec}", code.file):
        taken = inspect.signature(code.value).parameters
        refused = [key for key in arguments if key not in taken]
        if refused:
            raise BadInput(f"model {asked.spec}: the function takes no {refused[0]}; leave that option out")
        return code.value(**arguments)


def _said(code: UserCode, model: nn.Module, key: str) -> Any:
    """What the user's module or file says about its input."""
    for holder, name in ((model, key), (code.module, key.upper()), (code.module, key)):
        value = getattr(holder, name, None)
        if isinstance(value, (tuple, list)) or (isinstance(value, (int, float)) and key != "input_shape"):
            return tuple(value) if isinstance(value, (tuple, list)) else (value,)
    return None


def _exported(asked: Asked) -> Made:
    import torch

    path = Path(asked.spec).expanduser()
    if not path.is_file():
        raise BadInput(f"model {asked.spec}: there is no such file; give a .pt2 that torch.export.save wrote")
    if asked.changes:
        raise BadInput(f"model {asked.spec}: an exported network can't be changed; leave num_classes and channels out")
    try:
        program = torch.export.load(path)
    except Exception as error:
        # The archive's reader raises whatever its damage leads to.
        said = " ".join(str(error).split())[:160]
        raise BadInput(
            f"model {asked.spec}: torch {torch.__version__} can't read it ({type(error).__name__}: {said}); "
            "export it again: torch.export.save(torch.export.export(model, inputs), FILE)"
        ) from None
    shapes = [
        tuple(node.meta["val"].shape)
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in program.graph_signature.user_inputs
    ]
    if len(shapes) != 1 or len(shapes[0]) != 4:
        raise BadInput(f"model {asked.spec}: it takes {shapes}; export a network of one input (N, C, H, W)")
    batch, *image = shapes[0]
    if isinstance(batch, int):
        raise BadInput(
            f"model {asked.spec}: its batch size is fixed at {batch}; export it with a dynamic one: "
            "torch.export.export(model, inputs, dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))"
        )
    if not all(isinstance(size, int) for size in image):
        raise BadInput(f"model {asked.spec}: its image size is dynamic; export it with a fixed one")
    return Made(program.module(), (image[0], image[1], image[2]))


def _outputs(spec: str, model: nn.Module, shape: tuple[int, int, int] | None) -> int | None:
    """How many logits the network makes, found by running it on two black images."""
    import torch

    if shape is None:
        return None
    with guarded(f"model {spec}: run on an input of shape (2, {', '.join(map(str, shape))})"), torch.no_grad():
        output = model(torch.zeros(2, *shape))
    if not isinstance(output, torch.Tensor):
        raise BadInput(f"model {spec}: it returns a {type(output).__name__}; return one tensor")
    if output.ndim == 2 and len(output) == 2:
        return int(output.shape[1])
    if output.ndim == 4 and len(output) == 2:
        return None
    raise BadInput(
        f"model {spec}: two images give an output of shape {tuple(output.shape)}; "
        "return logits (N, classes), or images (N, C, H, W)"
    )


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


__all__ = ["BadWeights", "LoadedModel", "load", "names"]
