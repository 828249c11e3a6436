"""The README's command as it stands: what the default job for a Jetson must give."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from cli_calls import command, environment

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the user runs it, who may have just done so: then its candidates are in the user's cache already."""
    folder = tmp_path_factory.mktemp("default")
    default = command("--model", "resnet", "--target", "jetson")
    ours = ("COMPRESS_CACHE_BYTES", "OMP_NUM_THREADS")
    users = {name: value for name, value in environment().items() if name not in ours}
    subprocess.run(default, cwd=folder, env=users, check=True, timeout=1800)
    return folder / "runs" / "resnet-jetson-orin-nano"


def test_the_default_job_gives_six_plans_spread_over_a_factor_of_two(run: Path) -> None:
    candidates = json.loads((run / "front.json").read_text())["candidates"]
    assert len({candidate["plan_digest"] for candidate in candidates}) == len(candidates) >= 6
    macs = [candidate["macs"] for candidate in candidates]
    files = [(run / "candidates" / candidate["id"] / "model.onnx").stat().st_size for candidate in candidates]
    for sizes in (macs, files):
        assert max(sizes) > 2 * min(sizes)
    assert sum(candidate["on_front"] for candidate in candidates) >= 1


@pytest.mark.xfail(
    reason="a Jetson's predicted times of so small a network are launches and differ by hundredths, so tenths of a "
    "point of accuracy decide who is on the front; without a block one is a third faster, and dominates the others",
    strict=False,
)
def test_its_front_holds_three(run: Path) -> None:
    candidates = json.loads((run / "front.json").read_text())["candidates"]
    assert sum(candidate["on_front"] for candidate in candidates) >= 3
