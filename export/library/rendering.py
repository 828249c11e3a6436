"""The templates of a library: what they may name, and those that need nothing but its interface."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
import numpy.typing as npt

from compress.export.library.golden import Golden
from compress.export.library.interface import End, Interface
from compress.serial import to_json

SECTION = ".compress"
"""The section of a shared library that holds its :class:`Interface` as JSON."""


def render(template: str, **words: Any) -> bytes:
    """A template of ``export/templates/library`` with its words filled in."""
    made: str = _template(template).render(**words)
    return made.encode()


def words(interface: Interface) -> dict[str, Any]:
    """What every template may name."""
    name = interface.name
    parameters = [f"const {name}_{end.identifier}_t *{end.identifier}" for end in interface.inputs]
    parameters += [f"{name}_{end.identifier}_t *{end.identifier}" for end in interface.outputs]
    return {
        "name": name,
        "NAME": name.upper(),
        "version": interface.version,
        "triple": interface.triple,
        "cpu": interface.cpu,
        "inputs": interface.inputs,
        "outputs": interface.outputs,
        "threads": interface.threads,
        "arena_bytes": interface.arena_bytes,
        "arena_alignment": interface.arena_alignment,
        "parameters": "".join(f", {parameter}" for parameter in parameters),
    }


def runner(interface: Interface) -> bytes:
    """A program that runs raw inputs from stdin, for emulation; it isn't shipped."""
    return render("runner.c", **words(interface))


def timed(interface: Interface) -> bytes:
    """A program that runs raw inputs from stdin and times one of them, for devices; it isn't shipped."""
    return render("timed.c", **words(interface))


def packed(interface: Interface) -> bytes:
    """The library as a function that TVM's runtime calls, for its RPC servers; it isn't shipped."""
    return render("packed.c", **words(interface))


def description(interface: Interface) -> bytes:
    """The C file that puts the interface into a shared library; it isn't shipped."""
    text = json.dumps(to_json(interface), sort_keys=True).encode() + b"\0"
    lines = [", ".join(map(str, text[i : i + 24])) for i in range(0, len(text), 24)]
    characters = ",\n".join(f"    {line}" for line in lines)
    return render("describe.c", **words(interface), section=SECTION, characters=characters)


def golden_header(interface: Interface, golden: Golden) -> bytes:
    """``NAME_golden.h``: as many golden inputs as a header should hold, in the library's types and order."""
    small = golden.small(interface)
    arrays = [(end, [_row(row) for row in array]) for end, array in small.arrays(interface)]

    def ctype(end: End) -> str:
        return f"{interface.name}_{end.identifier}_t" if end in interface.inputs else "float"

    return render(
        "golden.h",
        **words(interface),
        arrays=arrays,
        count=small.count,
        tolerance=small.tolerance,
        largest=small.largest,
        ctype=ctype,
    )


def cfloat(value: float) -> str:
    """A float32 in C, exactly."""
    text = f"{np.float32(value):.9g}"
    return f"{text}f" if "." in text or "e" in text else f"{text}.0f"


def comment(text: str) -> str:
    """``text`` so that it can't end a comment in C."""
    return "".join(c if c.isascii() and c.isprintable() and c not in "*\\?" else "_" for c in text)[:120]


def _row(values: npt.NDArray[Any]) -> str:
    real = values.dtype == np.float32
    texts = [cfloat(float(v)) for v in values.flat] if real else [str(int(v)) for v in values.flat]
    width = 8 if real else 24
    return "\n".join(f"        {', '.join(texts[i : i + width])}," for i in range(0, len(texts), width))


@cache
def _template(name: str) -> Any:
    """Parsed once: that takes longer than filling one in."""
    source = resources.files("compress.export").joinpath("templates", "library", f"{name}.j2")
    return _environment().from_string(source.read_text(encoding="utf-8"))


@cache
def _environment() -> Any:
    import jinja2

    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
    )  # C and Markdown, not HTML
    filters: Mapping[str, Callable[..., Any]] = {"cfloat": cfloat, "comment": comment}
    environment.filters.update(filters)
    return environment


__all__ = [
    "SECTION",
    "cfloat",
    "comment",
    "description",
    "golden_header",
    "packed",
    "render",
    "runner",
    "timed",
    "words",
]
