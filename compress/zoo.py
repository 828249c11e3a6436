"""Networks of other packages: timm, torchvision and transformers, where they are installed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from compress.errors import BadInput, MissingExtra, UnknownName

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Made:
    """What one way of loading gives: a network that may still lack the user's weights.

    ``inner`` is the part whose names a checkpoint uses, where that isn't the whole; ``block`` and ``trained`` are
    those of :class:`compress.models.LoadedModel`.
    """

    model: nn.Module
    input_shape: tuple[int, int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    builtin: bool = False
    default_data: str | None = None
    inner: nn.Module | None = None
    block: int | None = None
    trained: bool = True


@dataclass(frozen=True)
class Asked:
    """What was asked for: see :func:`compress.models.load`."""

    spec: str
    name: str
    weights: str | None
    num_classes: int | None
    in_channels: int | None
    sensing: float | None = None

    @property
    def changes(self) -> dict[str, int]:
        """The arguments that change a factory's network."""
        found = {"num_classes": self.num_classes, "in_channels": self.in_channels}
        return {key: value for key, value in found.items() if value is not None}


def _timm(asked: Asked) -> Made:
    try:
        import timm
    except (ImportError, RuntimeError):
        # RuntimeError: timm imports torchvision, whose operators fail to register with another build of torch.
        raise MissingExtra("timm", "zoo", f"model {asked.spec}") from None
    if not timm.is_model(asked.name.partition(".")[0]):
        raise UnknownName("timm model", asked.name, timm.list_models())
    changes: dict[str, Any] = dict(asked.changes)
    if "in_channels" in changes:
        changes["in_chans"] = changes.pop("in_channels")
    model = _fetched(asked, lambda: timm.create_model(asked.name, pretrained=asked.weights is None, **changes))
    config = model.pretrained_cfg
    shape = tuple(config["input_size"])
    channels = asked.in_channels or shape[0]
    usual = channels == shape[0]
    mean, std = (tuple(config[key]) if usual else None for key in ("mean", "std"))
    return Made(model, (channels, shape[1], shape[2]), mean, std)


def _torchvision(asked: Asked) -> Made:
    try:
        from torchvision import models
    except (ImportError, RuntimeError):
        raise MissingExtra("torchvision", "zoo", f"model {asked.spec}") from None
    known = models.list_models(module=models)
    if asked.name not in known:
        raise UnknownName("torchvision model", asked.name, known)
    if asked.in_channels not in (None, 3):
        raise BadInput(f"model {asked.spec}: torchvision's networks take 3 channels; leave that option out")
    usual = models.get_model_weights(asked.name).DEFAULT
    changes = {} if asked.num_classes is None else {"num_classes": asked.num_classes}
    weights = usual if asked.weights is None else None
    model: nn.Module = _fetched(asked, lambda: models.get_model(asked.name, weights=weights, **changes))
    preset = usual.transforms()
    side = preset.crop_size[0]
    return Made(model, (3, side, side), tuple(preset.mean), tuple(preset.std))


def _hf(asked: Asked) -> Made:
    import torch
    from torch import nn

    try:
        import transformers  # type: ignore[import-not-found, unused-ignore]  # optional
    except (ImportError, RuntimeError):
        raise MissingExtra("transformers", "zoo", f"model {asked.spec}") from None
    if asked.in_channels is not None:
        raise BadInput(f"model {asked.spec}: its channels can't be changed; leave that option out")

    class Logits(nn.Module):
        """Images to logits, in place of transformers' dataclass of outputs."""

        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            """Images (N, C, H, W) to logits (N, classes)."""
            logits: torch.Tensor = self.network(pixel_values=images).logits
            return logits

    def fetch() -> Any:
        kind = transformers.AutoModelForImageClassification
        if asked.weights is not None:
            return kind.from_config(transformers.AutoConfig.from_pretrained(asked.name))
        changes = {} if asked.num_classes is None else {"num_labels": asked.num_classes}
        # use_safetensors: the other format is a pickle.
        return kind.from_pretrained(asked.name, use_safetensors=True, **changes)

    network = _fetched(asked, fetch)
    processor = _fetched(asked, lambda: transformers.AutoImageProcessor.from_pretrained(asked.name))
    size = processor.crop_size if getattr(processor, "do_center_crop", False) else processor.size
    height = size.get("height") or size.get("shortest_edge")
    width = size.get("width") or size.get("shortest_edge")
    channels = getattr(network.config, "num_channels", 3)
    mean, std = tuple(processor.image_mean), tuple(processor.image_std)
    return Made(Logits(network), (channels, height, width), mean, std, inner=network)


def _fetched(asked: Asked, make: Callable[[], Any]) -> Any:
    """What ``make`` gives; a failed download or an unsuitable name becomes one line."""
    try:
        return make()
    except Exception as error:
        # The packages pass on whatever their network clients raise.
        said = " ".join(str(error).split())[:160]
        raise BadInput(
            f"model {asked.spec}: its package couldn't make it ({type(error).__name__}: {said}); "
            "check the name and the network, or give --weights FILE"
        ) from None


LOADERS: Mapping[str, Callable[[Asked], Made]] = {"timm": _timm, "torchvision": _torchvision, "hf": _hf}
