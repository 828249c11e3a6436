"""A calibration's networks on a device over SSH: ONNX files in ONNX Runtime there, one job for each kind of numbers."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from compress import __version__
from compress.calibration import Kind, Unit
from compress.errors import BadInput
from compress.profiling import calibrating, pace, session, timer
from compress.profiling.device_address import SshDevice
from compress.profiling.drawing import Drawn
from compress.profiling.remote import MACHINES, awaited
from compress.profiling.ssh import Sent, Session
from compress.types import Target

BUSY = 0.5
"""Load of the device, a core, beside which a measurement is said to be disturbed."""


class There:
    """A device over SSH.

    Args:
        target: its target.
        device: its address.
        tell: told what is happening on the way there.

    Raises:
        BadInput: it can't be reached, has another architecture than the target, or lacks ONNX Runtime.
    """

    unit: Unit = "s"

    def __init__(self, target: Target, device: SshDevice, tell: Callable[[str], None] = lambda message: None) -> None:
        self.target, self.where, self.tell = target, device, tell
        self.warnings: list[str] = []
        with Session(device, self._job("probe"), tell) as there:
            probe = there.ask({"do": "probe"})
        machine = MACHINES.get(probe["machine"].lower(), probe["machine"].lower())
        wanted = (target.triple or machine).split("-")[0]
        if machine != wanted:
            raise BadInput(
                f"--device {device}: the device is {machine}, {target.name} is {wanted}; give its own target"
            )
        missing = [name for name in ("numpy", "onnxruntime") if probe["packages"].get(name) is None]
        if missing:
            raise BadInput(
                f"--device {device}: {' and '.join(missing)} missing for {device.python} there: "
                f"{device.python} -m pip install {' '.join(missing)}"
            )
        if (probe.get("load") or 0.0) > BUSY * int(probe["cores"] or 1):
            self.warnings.append("other programs used the device meanwhile")
        self.device = f"{probe['model']}, {probe['cores']} cores, {probe['machine']}"
        self.address, self.threads = str(device), int(probe["cores"] or 1)
        self.versions: Mapping[str, str] = {"compress": __version__, "onnxruntime": probe["packages"]["onnxruntime"]}

    def groups(self) -> Sequence[tuple[str, Kind]]:
        """ONNX Runtime, both kinds of numbers."""
        return [(calibrating.ONNXRUNTIME, "float"), (calibrating.ONNXRUNTIME, "integer")]

    def measure(self, drawn: Sequence[Drawn], runtime: str, tell: Callable[[int], None]) -> dict[str, float]:
        """Seconds by name at one pace, timed in turns of so many and the references."""
        drawn = calibrating.mixed(calibrating.shipped(drawn, self.target))
        beside = calibrating.references(drawn)
        references = [Sent(f"{each.name}.onnx", each.file) for each in beside]
        files = [Sent(f"{number:04}.onnx", each.file) for number, each in enumerate(drawn)]
        spec: dict[str, Any] = {
            "runtime": "designs",
            "files": [each.path for each in files],
            "beside": [each.path for each in references],
            "pace": pace.NAME,
            "threads": 0,
            "together": calibrating.TOGETHER,
            "rounds": calibrating.ROUNDS,
            "slice_s": calibrating.SLICE_S,
            "warm_up_s": calibrating.WARM_UP_S,
            "settle_s": timer.SETTLE_S,
            "spin_s": session.SPIN_S,
            "spin_is_set_from": session.SPIN_IS_SET_FROM,
        }

        def heard(message: str) -> None:
            done = re.search(r"timed (\d+) of", message)
            tell(int(done[1])) if done else self.tell(message)

        named = hashlib.sha256(b"".join(each.file for each in [*beside, *drawn])).hexdigest()
        with Session(self.where, self._job(named), self.tell) as there:
            self.tell(f"copy {len(files)} files")
            there.send([*files, *references])
            there.start(spec)
            found = awaited(there, heard)
        if found["conditions"].get("moved"):
            self.warnings.append("the device's clocks moved meanwhile: fix them and calibrate again")
        names = {sent.path: each.name for each, sent in zip(drawn, files, strict=True)} | {pace.NAME: pace.NAME}
        groups = [{names[path]: float(seconds) for path, seconds in group.items()} for group in found["groups"]]
        self.warnings += calibrating.said_of(groups)
        return pace.at_one_pace(groups)

    def _job(self, what: str) -> str:
        return hashlib.sha256(f"calibrate; {self.where}; {what}".encode()).hexdigest()[:16]


__all__ = ["There"]
