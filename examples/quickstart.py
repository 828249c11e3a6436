"""Compress the built-in network for a Jetson and keep the best candidate's bundle.

    python examples/quickstart.py [OUT]

takes about a minute and a half on two cores and writes a run folder and a bundle under OUT (default: runs/quickstart).
"""

import sys
from pathlib import Path

import compress

out = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/quickstart")
front = compress.run("resnet", target="jetson", budget=compress.Budget(max_accuracy_drop=1.0), out=out / "run")

for candidate in front.on_front():
    latency_ms = 1e3 * front.latency_s(candidate)
    kind = "measured" if front.all_measured else "predicted"
    print(f"{candidate.id}: {candidate.value:.1f}%, {latency_ms:.3f} ms {kind}, {candidate.best.bytes} bytes")

print("bundle:", compress.save_bundle(front.best(), out / "bundle"))
