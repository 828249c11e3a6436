"""Run this bundle's CUDA module on this device's GPU: golden inputs, then the latency of one input.

Needs python, numpy and TVM's runtime (apache-tvm of the version in cuda/network.json, and CUDA 13's libcudart), and
neither a compiler nor the ONNX file. Exit status: 0 "ok", 2 something is missing, 4 the outputs differ.

python run_cuda.py                     check and time
python run_cuda.py --json FILE         and write what was found to FILE
"""

import argparse
import json
import pathlib
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
WARM_UP_S, SECONDS = 0.5, 2.0


def main(arguments=None):
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("--json", metavar="FILE", help="write what was found to FILE too")
    given.add_argument("--seconds", type=float, default=SECONDS, help="of timing (default: %g)" % SECONDS)
    options = given.parse_args(arguments)
    try:
        import numpy as np
        import tvm
        from tvm import relax
    except ImportError as error:
        print("error: %s is missing: pip install numpy apache-tvm" % error.name, file=sys.stderr)
        return 2
    about = json.loads((HERE / "cuda" / "network.json").read_text(encoding="utf-8"))
    device = tvm.cuda(0)
    if not device.exist:
        print("error: TVM finds no CUDA device: are the driver and libcudart.so.13 installed?", file=sys.stderr)
        return 2
    found = device.compute_version.replace(".", "")
    if "sm_" + found != about["gpu"]:
        print(
            "error: the module is for %s, this GPU is sm_%s: make the bundle for it" % (about["gpu"], found),
            file=sys.stderr,
        )
        return 2
    machine = relax.VirtualMachine(tvm.runtime.load_module(str(HERE / "cuda" / "network.so")), device)
    entry, result = about["input"], about["output"]
    golden = np.load(str(HERE / "golden.npz"), allow_pickle=False)

    def run(x):
        return machine["main"](tvm.runtime.tensor(to_module(np, x, entry), device)).numpy()

    outputs = np.stack([from_module(np, run(x), result) for x in golden["inputs"]])
    wanted = np.load(str(HERE / "cuda" / "reference.npy"), allow_pickle=False)
    difference = float(np.abs(outputs - wanted).max())
    allowed = about["tolerance"] * float(np.abs(wanted).max())
    print("golden inputs: largest difference from the integer reference %.3g" % difference)
    if not difference <= allowed:
        print("error: the outputs differ from the reference", file=sys.stderr)
        return 4
    x = tvm.runtime.tensor(to_module(np, golden["inputs"][0], entry), device)
    times, end = [], time.perf_counter() + WARM_UP_S + options.seconds
    while time.perf_counter() < end or len(times) < 10:
        begun = time.perf_counter()
        machine["main"](x)
        device.sync()
        times.append((begun, time.perf_counter() - begun))
    late = sorted(t for begun, t in times if begun > end - options.seconds) or sorted(t for _, t in times)
    median, p90, p99 = (late[int(share * len(late))] for share in (0.5, 0.9, 0.99))
    print("latency: median %.3f ms, p90 %.3f ms, %d runs" % (1e3 * median, 1e3 * p90, len(late)))
    if options.json:
        found = {
            "device": "%s (compute capability %s)" % (device.device_name, device.compute_version),
            "golden_equal": True,
            "difference": difference,
            "latency_s": median,
            "latency_p90_s": p90,
            "latency_p99_s": p99,
            "runs": len(late),
            "conditions": {"runtime": "CUDA module on TVM %s" % tvm.__version__, "batch": 1},
        }
        pathlib.Path(options.json).write_text(json.dumps(found), encoding="utf-8")
    print("ok")
    return 0


def to_module(np, x, end):
    """One input in the file's order, float32, as the module takes it: channels last, flat, on its grid."""
    laid = (
        x.transpose(1, 2, 0) if len(end["shape"]) == 3 and list(x.shape) == [end["shape"][2]] + end["shape"][:2] else x
    )
    if end["dtype"] == "float32":
        return np.ascontiguousarray(laid, np.float32).reshape(-1)
    low, high = np.iinfo(end["dtype"]).min, np.iinfo(end["dtype"]).max
    steps = np.rint(laid / np.float32(end["scale"])).astype(np.float64) + end["zero_point"]
    return np.ascontiguousarray(np.clip(steps, low, high).astype(end["dtype"])).reshape(-1)


def from_module(np, y, end):
    """One output as float32 in the file's order."""
    y = y.reshape(end["shape"])
    if end["dtype"] != "float32":
        y = (y.astype(np.int64) - end["zero_point"]).astype(np.float32) * np.float32(end["scale"])
    if len(end["shape"]) == 3 and end["file_shape"] == [end["shape"][2]] + end["shape"][:2]:
        y = y.transpose(2, 0, 1)
    return np.ascontiguousarray(y, np.float32).reshape(end["file_shape"])


if __name__ == "__main__":
    sys.exit(main())
