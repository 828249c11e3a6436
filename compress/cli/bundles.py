"""``compress verify`` and ``profile``: what to do with the bundle that a run left."""

from __future__ import annotations

from pathlib import Path

from compress.cli import screen
from compress.errors import CheckFailed, UnknownName
from compress.report import words

LOCAL, QEMU = "local", "qemu"


def verify(bundle: str, data: str | None, as_json: bool) -> int:
    """Check a bundle and print what was found.

    Raises:
        BadInput: there is no such folder, or ``data`` can't be used.
        CheckFailed: something is wrong with the bundle.
    """
    from compress.profiling import verify as verifying

    found = verifying.verify(Path(bundle), data)
    if as_json:
        screen.emit(verifying.document(found))
    else:
        from compress.report.terminal import rows_table

        rows = [(check.name, check.status, check.detail) for check in found.checks]
        screen.show(rows_table(["check", "", "found"], rows), f"{bundle}: {'ok' if found.ok else 'not ok'}")
    if not found.ok:
        raise CheckFailed(f"bundle {bundle}", found.failures)
    return 0


def profile(bundle: str, device: str, runtime: str | None, as_json: bool) -> int:
    """Measure a bundle and print what was found.

    Raises:
        BadInput: there is no such folder, device or runtime.
        CheckFailed: the bundle is damaged or gives other outputs than the golden ones.
    """
    from compress.profiling import emulated, local

    if device == LOCAL:
        found = local.profile(Path(bundle), runtime)
    elif device == QEMU:
        found = emulated.profile(Path(bundle))
    else:
        raise UnknownName("device", device, (LOCAL, QEMU))
    if as_json:
        screen.emit(local.document(found))
    else:
        from compress.report.terminal import rows_table

        rows = [
            ("device", found.device),
            ("runtime", words.runtime(found.runtime)),
            ("golden inputs", "equal, within the tolerance" if found.golden_equal else "differ"),
            ("latency, median", words.seconds(found.latency_s)),
            ("latency, p90", words.seconds(found.latency_p90_s)),
            ("MACs", words.count(found.macs)),
            ("instructions", words.count(found.instructions)),
            ("working memory", words.size(found.arena_bytes)),
            ("flash" if found.runtime == "tvm" else "file", words.size(found.flash_bytes)),
            ("conditions", ", ".join(f"{key} {value}" for key, value in found.conditions.items())),
        ]
        screen.show(rows_table(["", ""], [row for row in rows if row[1] != words.DASH]))
    if not found.golden_equal:
        raise CheckFailed(f"bundle {bundle}", ["the golden inputs give other outputs; see compress verify"])
    return 0
