"""The README's command as it stands: what the default job for a Jetson must give."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from cli_calls import command, environment


@pytest.mark.slow
def test_the_default_job_gives_six_plans_spread_over_a_factor_of_two(tmp_path: Path) -> None:
    default = command("--model", "resnet", "--target", "jetson")
    subprocess.run(default, cwd=tmp_path, env=environment(), check=True, timeout=1800)
    run = tmp_path / "runs" / "resnet-jetson-orin-nano"
    front = json.loads((run / "front.json").read_text())
    candidates = front["candidates"]
    assert len({candidate["plan_digest"] for candidate in candidates}) == len(candidates) >= 6
    macs = [candidate["macs"] for candidate in candidates]
    files = [(run / "candidates" / candidate["id"] / "model.onnx").stat().st_size for candidate in candidates]
    for sizes in (macs, files):
        assert max(sizes) > 2 * min(sizes)
    assert sum(candidate["on_front"] for candidate in candidates) >= 3
