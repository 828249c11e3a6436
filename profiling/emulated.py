"""A bundle's compiled library on its own processor, emulated: golden inputs, and a count of instructions."""

from __future__ import annotations

import tempfile
from pathlib import Path

from compress.errors import CheckFailed
from compress.export import bundle as bundles
from compress.export import checked
from compress.export.manifest import read_manifest
from compress.profiling import emulator
from compress.profiling.local import Profile, existing
from compress.profiling.rebuilt import rebuild

RUNTIME = "tvm"


def profile(bundle: Path) -> Profile:
    """Run a bundle's golden inputs in QEMU. It gives no latency: an emulator's time is no device's.

    Raises:
        BadInput: there is no such folder, it holds no library, or an emulator or compiler is missing.
        CheckFailed: the bundle is damaged, or the library differs from the reference.
    """
    bundle = existing(bundle)
    manifest = read_manifest(bundle)
    wrong = bundles.damage(bundle, manifest) or [w for w in [checked.self_contained(bundle)] if w is not None]
    if wrong:
        raise CheckFailed(str(bundle), wrong)
    inputs, _ = checked.golden(bundle)
    with tempfile.TemporaryDirectory() as temporary:
        compiled, same = rebuild(bundle, Path(temporary))
        found = emulator.check(compiled, inputs)
        built = compiled.library
        conditions = {
            "library": same,
            "checked": found.said,
            "batch": 1,
            "latency": "none: an emulator's time is no device's",
        }
        if found.instructions is not None:
            conditions["instructions"] = "counted by the emulator for one input; not a time"
        return Profile(
            device=f"QEMU, {built.isa.cpu} ({built.isa.triple})",
            runtime=RUNTIME,
            golden_equal=True,
            latency_s=None,
            latency_p90_s=None,
            instructions=found.instructions,
            macs=compiled.program.macs,
            arena_bytes=built.arena_bytes,
            flash_bytes=built.flash_bytes,
            conditions=conditions,
        )


__all__ = ["profile"]
