"""``compress verify``, ``profile`` and ``report``: what to do with what a run left."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compress import runfolder
from compress.cli import screen
from compress.cli.session import resume_command
from compress.errors import CheckFailed, RunFolderError, UnknownName
from compress.report import words
from compress.report.facts import RunFacts
from compress.results import Front
from compress.serial import from_json

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


def report(run: str, as_json: bool) -> int:
    """Draw a finished run's report again.

    Raises:
        BadInput: it isn't the folder of a finished run, or can't be written.
    """
    path = Path(run)
    document = runfolder.read_run(path)
    if document.get("status") == "running":
        raise RunFolderError(str(path), "its run isn't finished", f"go on with it: {resume_command(path)}")
    front, facts = read_finished(path, document)
    from compress.execution import write_documents

    with runfolder.disk_errors(path):
        write_documents(path, front, facts)
    written = [str(path / name) for name in ("report.html", "front.svg")]
    if as_json:
        screen.emit({"written": written})
    else:
        screen.show(f"wrote {' and '.join(written)}")
    return 0


def read_finished(path: Path, document: Mapping[str, Any]) -> tuple[Front, RunFacts]:
    """The front and the facts of a finished run.

    Args:
        path: its folder.
        document: what its run.json says.

    Raises:
        RunFolderError: a file is missing or damaged.
    """
    name = "front.json"
    try:
        front = Front.from_document(json.loads((path / name).read_text(encoding="utf-8")))
        name = runfolder.RUN
        facts = from_json(RunFacts, document["facts"])
    except OSError as error:
        raise RunFolderError(
            str(path), f"{name} can't be read ({error.strerror})", "run again with another --out"
        ) from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        raise RunFolderError(str(path), f"{name} is damaged ({said})", "run again with another --out") from None
    return front, facts
