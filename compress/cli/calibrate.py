"""``compress calibrate``: time the designed networks on a device, fit, keep the result and show its error."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from compress import targets
from compress.cli import screen
from compress.cli.bundles import LOCAL, QEMU
from compress.errors import BadInput, UnknownName
from compress.profiling.device_address import SshDevice, parse
from compress.serial import to_json
from compress.types import Target

if TYPE_CHECKING:
    from compress.calibration import Calibration
    from compress.profiling.calibrating import Progress, Stand


def run(name: str, device: str | None, as_json: bool, quiet: bool = False) -> int:
    """Calibrate a target and print what was found.

    Raises:
        BadInput: there is no such target or device, it lacks something, or the result can't be written.
    """
    target = targets.load(name)
    where = device if device is not None else LOCAL if target.host else QEMU if target.bare_metal else None
    _refuse(target, where)
    from compress.profiling import calibrating, calibrations

    calibrations.check_writable(target)
    with _progress(quiet) as progress:
        calibration = calibrating.calibrate(target, _stand(target, where, quiet), progress)
    path = calibrations.save(target, calibration)
    if as_json:
        screen.emit({"path": str(path), "sha256": calibration.digest(), "calibration": to_json(calibration)})
    else:
        _show(calibration, str(path))
    return 0


def _refuse(target: Target, where: str | None) -> None:
    """What can't be measured, before anything is."""
    if target.gpu is not None:
        raise BadInput(
            f"{target.name} runs TensorRT, whose engines aren't calibrated; compress profile BUNDLE "
            "--device ssh://USER@HOST measures them there"
        )
    if where is None:
        raise BadInput(f"{target.name} isn't this machine; add --device ssh://USER@HOST, with ONNX Runtime there")
    if where == LOCAL and not target.host:
        raise BadInput(f"--device local is this machine, and {target.name} isn't it; add --device ssh://USER@HOST")
    if "://" not in where and where not in (LOCAL, QEMU):
        raise UnknownName("device", where, (LOCAL, QEMU), "or ssh://USER@HOST")
    if "://" in where:
        address = parse(where)
        if not isinstance(address, SshDevice):
            raise BadInput(
                "--device rpc://: a calibration needs ONNX Runtime on the device; give --device ssh://USER@HOST"
            )
        if target.host or target.bare_metal or "onnxruntime" not in target.runtimes:
            fix = "leave --device out" if target.host or target.bare_metal else "choose a target that runs it"
            raise BadInput(f"--device {where}: {target.name} isn't calibrated through ONNX Runtime over SSH; {fix}")


def _stand(target: Target, where: str | None, quiet: bool) -> Stand:
    from compress.profiling import calibrating

    if where == LOCAL:
        return calibrating.Here(target)
    if where == QEMU:
        return calibrating.Counted(target)
    from compress.profiling.remote_designs import There

    address = parse(str(where))
    assert isinstance(address, SshDevice)
    return There(target, address, lambda message: None if quiet else _say(message))


def _say(message: str) -> None:
    sys.stderr.write(f"{message}\n")


@contextlib.contextmanager
def _progress(quiet: bool) -> Iterator[Progress]:
    """A bar on a terminal; elsewhere a line for each quarter."""
    console = screen.error_console()
    if quiet:
        yield lambda what, done, of: None
        return
    if not console.is_terminal or console.is_dumb_terminal:
        told: set[tuple[str, int]] = set()

        def lines(what: str, done: int, of: int) -> None:
            quarter = 4 * done // of
            if (what, quarter) not in told:
                told.add((what, quarter))
                _say(f"calibrate: {what}, {done} of {of} networks")

        yield lines
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task("calibrate")
        yield lambda what, done, of: bars.update(task, description=f"calibrate: {what}", completed=done, total=of)


def _show(calibration: Calibration, path: str) -> None:
    from compress.report import words
    from compress.report.terminal import rows_table

    def percent(value: float) -> str:
        return words.percent(value, 0 if value >= 0.1 else 1)

    rows = [
        (
            words.runtime(each.runtime),
            each.kind,
            str(each.fitted),
            str(each.checked),
            percent(each.median_error),
            percent(each.p90_error),
            f"± {percent(each.error)}",
        )
        for each in calibration.fits
    ]
    what = "latency" if calibration.unit == "s" else "instructions"
    headings = ["runtime", "numbers", "fitted", "checked", "median error", "p90", "interval"]
    title = f"{calibration.target} on {calibration.device}: errors of predicted {what} on networks that weren't fitted"
    screen.show(rows_table(headings, rows, right=[2, 3, 4, 5, 6], title=title))
    for warning in calibration.warnings:
        screen.show(f"warning: {warning}; calibrate again on a quiet machine")
    screen.show(f"in {path} ({calibration.seconds:.0f} s); runs for {calibration.target} predict by it from now on")


__all__ = ["run"]
