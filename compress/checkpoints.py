"""Reading a checkpoint without running anything in it, and fitting it to a network."""

from __future__ import annotations

import hashlib
import io
import pickletools
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.errors import BadWeights

if TYPE_CHECKING:
    from torch import Tensor, nn

NESTED = ("state_dict", "model_state_dict", "model", "net", "params")
PREFIXES = ("module.", "_orig_mod.")
SUFFIXES = (".safetensors", ".pt", ".pth", ".th", ".pkl", ".bin", ".ckpt")


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors`` file, or of what ``torch.save`` wrote, by name.

    A dict inside the dict (``state_dict``, ``model``, ...) is taken out, and prefixes that wrappers
    put in front of every name (``module.``) are taken off.

    Raises:
        BadWeights: there is no such file, it is damaged, holds no tensors, or its pickle names
            anything that could run code.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise BadWeights(str(path), "there is no such file", "give --weights a file that exists")
    found = _read_safetensors(file) if file.suffix == ".safetensors" else _read_torch(file)
    for _ in range(3):
        inner = next((found[key] for key in NESTED if isinstance(found.get(key), Mapping)), None)
        if inner is None:
            break
        found = dict(inner)
    import torch

    state = {str(key): value for key, value in found.items() if isinstance(value, torch.Tensor)}
    if not state:
        keys = ", ".join(map(str, list(found)[:3])) or "nothing"
        raise BadWeights(
            str(path), f"it holds no parameters ({keys})", "save the parameters: torch.save(model.state_dict(), FILE)"
        )
    for prefix in PREFIXES:
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def load_checkpoint(model: nn.Module, path: str | Path) -> None:
    """Put the tensors of a checkpoint into ``model``, in place, each in the model's number format.

    Batch norm's counters (``num_batches_tracked``) may be missing; nothing else may.

    Raises:
        BadWeights: see :func:`read_checkpoint`; or a key is missing, extra or of another shape, or holds
            NaN or infinity.
    """
    state = read_checkpoint(path)
    own = model.state_dict()
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    extra = [k for k in state if k not in own and not k.endswith("num_batches_tracked")]
    wrong = [
        f"{k} {tuple(state[k].shape)} where the network has {tuple(own[k].shape)}"
        for k in own
        if k in state and state[k].shape != own[k].shape
    ]
    problems = [
        f"{_count(keys, what)} ({_first(keys)})"
        for what, keys in (("missing key", missing), ("extra key", extra), ("wrongly shaped key", wrong))
        if keys
    ]
    if problems:
        raise BadWeights(str(path), "; ".join(problems), _fix(extra, missing))
    check_finite({k: v for k, v in state.items() if k in own}, str(path))
    model.load_state_dict({**own, **{k: v for k, v in state.items() if k in own}})


def check_finite(state: Mapping[str, Tensor], path: str) -> None:
    """Raise BadWeights if any tensor holds NaN or infinity."""
    bad = [key for key, value in state.items() if value.is_floating_point() and not bool(value.isfinite().all())]
    if bad:
        raise BadWeights(
            path,
            f"NaN or infinity in {_count(bad, 'tensor')} ({_first(bad)})",
            "train again, or give another checkpoint",
        )


def digest(model: nn.Module) -> str:
    """SHA-256 of every parameter and buffer: names in order, number formats, shapes, values."""
    import torch

    state = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        state.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
        state.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return state.hexdigest()


def _count(items: list[str], what: str) -> str:
    return f"{len(items)} {what}{'s' * (len(items) != 1)}"


def _first(names: Iterable[str], most: int = 3) -> str:
    listed = list(names)
    return ", ".join(listed[:most]) + (", ..." if len(listed) > most else "")


def _fix(extra: list[str], missing: list[str]) -> str:
    if extra and missing:
        return "give the checkpoint of this very network"
    return "give the checkpoint of this network with the same number of classes, channels and layers"


def _read_safetensors(file: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return dict(load(file.read_bytes()))
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise BadWeights(str(file), f"it can't be read as safetensors ({error})", "fetch or save it again") from None


def _read_torch(file: Path) -> dict[str, Any]:
    import torch

    try:
        with warnings.catch_warnings():
            # A warning about pickle protocols, which the refusal below makes pointless.
            warnings.simplefilter("ignore")
            found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch.load fails in many types; which names the pickle holds tells a refusal from damage.
        names = _pickled_names(file)
        if names:
            raise BadWeights(
                str(file),
                f"its pickle asks for {names[0]}, which could run code, so it wasn't loaded, for safety",
                "if you trust it, load it yourself and save the tensors alone: torch.save(model.state_dict(), FILE)",
            ) from None
        said = " ".join(str(error).split())[:120]
        raise BadWeights(
            str(file),
            f"it is damaged or no checkpoint ({type(error).__name__}{': ' + said if said else ''})",
            f"give a file of torch.save or safetensors ({', '.join(SUFFIXES)})",
        ) from None
    if isinstance(found, torch.Tensor) or not isinstance(found, Mapping):
        raise BadWeights(
            str(file), f"it holds a {type(found).__name__}", "save a dict: torch.save(model.state_dict(), FILE)"
        )
    return dict(found)


def _pickled_names(file: Path) -> list[str]:
    """The callables and classes that a pickle names, those of plain tensors left out; nothing is run."""
    try:
        content = file.read_bytes()
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                member = next(name for name in archive.namelist() if name.endswith("data.pkl"))
                content = archive.read(member)
    except (OSError, StopIteration, zipfile.BadZipFile):
        return []
    names: list[str] = []
    strings: list[str] = []
    stream = io.BytesIO(content)
    try:
        # Old files are several pickles one after another.
        while stream.tell() < len(content):
            for operation, argument, _ in pickletools.genops(stream):
                if operation.name in ("GLOBAL", "INST"):
                    names.append(str(argument).replace(" ", "."))
                elif operation.name == "STACK_GLOBAL" and len(strings) >= 2:
                    names.append(".".join(strings[-2:]))
                elif isinstance(argument, str):
                    strings.append(argument)
    except Exception:
        # Whatever was found before the damage counts.
        return _unusual(names)
    return _unusual(names)


def _unusual(names: Iterable[str]) -> list[str]:
    plain = ("collections.OrderedDict", "torch._utils.", "torch.storage.", "torch.serialization.")
    return [n for n in names if not n.startswith(plain) and not (n.startswith("torch.") and n.endswith("Storage"))]
