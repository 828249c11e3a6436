"""How a run's candidates are made: here, in several processes, by a cluster, from what earlier runs kept."""

from __future__ import annotations

import re
from dataclasses import dataclass

from compress.errors import BadInput, WorkersUnusable


@dataclass(frozen=True, slots=True)
class MakingOptions:
    """How candidates are made; what comes out doesn't depend on it.

    Attributes:
        processes: of this machine; 1 for this one alone.
        workers: the address of a Dask scheduler, whose workers make the candidates; None for none.
        cache: take what earlier runs made, and keep what this one makes.
    """

    processes: int = 1
    workers: str | None = None
    cache: bool = True

    def check(self, tune: float | None) -> None:
        """See that it fits together.

        Raises:
            BadInput: it doesn't.
        """
        if self.processes < 1:
            raise BadInput(f"--processes {self.processes}: it must be at least 1")
        if self.workers is not None and not _is_address(self.workers):
            raise WorkersUnusable(
                f"--workers {self.workers}", "it is no address of a Dask scheduler", "give one such as tcp://host:8786"
            )
        if self.workers is not None and self.processes > 1:
            raise BadInput("--processes are this machine's and --workers a cluster's; give one of them")
        if tune is not None and (self.processes > 1 or self.workers is not None):
            option = "--workers" if self.workers is not None else "--processes"
            raise BadInput(f"--tune times kernels, which needs this machine for itself; leave {option} out")


def _is_address(text: str) -> bool:
    found = re.fullmatch(r"(?:(?:tcp|tls)://)?(?:\[[0-9a-fA-F:]+\]|[^\s:/\[\]]+):(\d{1,5})", text)
    return found is not None and 0 < int(found[1]) < 65536
