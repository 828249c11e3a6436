"""Run this bundle's network. Needs python 3.8 or later, numpy and onnxruntime, and nothing else.

python run.py                  check the golden inputs: "ok", or what differs (exit status 4)
python run.py --image FILE     classify or reconstruct an .npy image (uint8 or float in 0 to 255, HWC or HW)
python run.py --time           the median latency of one input on this device
python run.py --measurements FILE   go on from what the hardware measured, an .npy (measurements, rows, columns), in the
                               light of white pixels; for bundles with patterns/
"""

import argparse
import hashlib
import json
import pathlib
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
MODEL, GOLDEN = "model.onnx", "golden.npz"

SATURATED = """\
note: on this processor the integer kernels of ONNX Runtime give other outputs than the network (on x86 without VNNI
their sums saturate), so it was run in float. In a session of your own, add_session_config_entry(
"session.disable_quant_qdq", "1") does the same; a bundle that is compressed for --target x86-64 is right without."""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", metavar="FILE", help="an .npy image to run")
    parser.add_argument("--measurements", metavar="FILE", help="an .npy of what the hardware measured")
    parser.add_argument("--time", action="store_true", help="time one input")
    parser.add_argument("--threads", type=int, default=0, help="threads (default: all)")
    options = parser.parse_args()
    try:
        import numpy as np
        import onnxruntime
    except ImportError as error:
        print(f"error: {error.name} is missing: pip install numpy onnxruntime", file=sys.stderr)
        return 2
    manifest = json.loads((HERE / "manifest.json").read_text(encoding="utf-8"))
    file = "patterns/network.onnx" if options.measurements else MODEL
    if options.measurements and not (HERE / file).is_file():
        print(f"error: this bundle has no {file}: it takes images", file=sys.stderr)
        return 2

    def runner(file, integers):
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = options.threads
        settings.log_severity_level = 3
        if not integers:
            settings.add_session_config_entry("session.disable_quant_qdq", "1")
        session = onnxruntime.InferenceSession(str(HERE / file), settings, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        return lambda x: session.run(None, {name: x})[0]

    everything = not (options.image or options.measurements)
    if damaged(entry for entry in manifest["files"] if everything or entry["path"] in (file, MODEL, GOLDEN)):
        return 4
    golden = dict(np.load(HERE / GOLDEN, allow_pickle=False))
    outputs, integers = outputs_of(np, golden, manifest["tolerance"], lambda integers: runner(MODEL, integers))
    run = runner(file, integers)
    if options.measurements:
        status = recover(np, run, manifest, pathlib.Path(options.measurements))
    elif options.image:
        status = classify(np, run, manifest, pathlib.Path(options.image))
    else:
        status = check(np, outputs, golden, manifest)
        if options.time and status == 0:
            clock(run, golden["inputs"][:1])
    if status == 0 and not integers:
        print(SATURATED)
    return status


def damaged(files):
    """Whether a file isn't what it was; says which."""
    for entry in files:
        path = HERE / entry["path"]
        if not path.is_file():
            print(f"error: {entry['path']} is missing: copy the bundle again", file=sys.stderr)
            return True
        if hashlib.sha256(path.read_bytes()).hexdigest() != entry["sha256"]:
            print(f"error: {entry['path']} has been changed: copy the bundle again", file=sys.stderr)
            return True
    return False


def outputs_of(np, golden, tolerance, runner):
    """The golden inputs' outputs, and whether integer kernels gave them: in float, if those alone are wrong here."""
    found = []
    for integers in (True, False):
        run = runner(integers)
        found.append(np.concatenate([run(x[None]) for x in golden["inputs"]]))
        if difference(np, found[-1], golden["outputs"]) <= tolerance:
            return found[-1], integers
    return found[0], True


def difference(np, outputs, wanted):
    """The largest difference, relative to the largest output that is wanted."""
    return float(np.abs(outputs - wanted).max()) / (float(np.abs(wanted).max()) or 1.0)


def check(np, outputs, golden, manifest):
    """Say how far outputs are from the golden ones."""
    off = difference(np, outputs, golden["outputs"])
    if manifest["task"] == "classification":
        same = int((outputs.argmax(1) == golden["outputs"].argmax(1)).sum())
        print(f"golden inputs: {same} of {len(outputs)} classes equal, largest relative difference {off:.2g}")
    else:
        print(f"golden inputs: largest relative difference {off:.2g}")
    equal = off <= manifest["tolerance"]
    print("ok" if equal else f"error: the difference is above the tolerance of {manifest['tolerance']:.2g}")
    return 0 if equal else 4


def classify(np, run, manifest, path):
    """Normalize one image as the network was trained and print what it says."""
    image = np.asarray(np.load(path, allow_pickle=False), dtype=np.float32)
    shape = tuple(manifest["input"]["shape"][1:])
    image = image[None] if image.ndim == 2 else image.transpose(2, 0, 1) if image.ndim == 3 else image
    if image.shape != shape:
        print(
            f"error: {path.name} is {image.shape} (channels, height, width), the network takes {shape}", file=sys.stderr
        )
        return 2
    mean = np.asarray(manifest["mean"], dtype=np.float32).reshape(-1, 1, 1)
    std = np.asarray(manifest["std"], dtype=np.float32).reshape(-1, 1, 1)
    return show(np, run(((image / 255 - mean) / std)[None].astype(np.float32)), manifest, path)


def recover(np, run, manifest, path):
    """Run the network behind the measurements and print or write what it says."""
    sys.path.insert(0, str(HERE / "patterns"))
    import measure

    try:
        patterns = measure.load(HERE / "patterns")
    except measure.WrongPatterns as error:
        print(f"error: patterns: {error}", file=sys.stderr)
        return 4
    try:
        fed = patterns.standardize(np.load(path, allow_pickle=False))
    except measure.WrongPatterns as error:
        print(f"error: {path.name}: {error}", file=sys.stderr)
        return 2
    return show(np, run(fed[None]), manifest, path)


def show(np, output, manifest, path):
    """Print the likeliest classes, or write the image."""
    mean = np.asarray(manifest["mean"], dtype=np.float32).reshape(-1, 1, 1)
    std = np.asarray(manifest["std"], dtype=np.float32).reshape(-1, 1, 1)
    if manifest["task"] != "classification":
        np.save(path.with_suffix(".out.npy"), ((output[0] * std + mean) * 255).clip(0, 255).astype(np.uint8))
        print(f"wrote {path.with_suffix('.out.npy').name}")
        return 0
    likely = np.exp(output[0] - output[0].max())
    likely /= likely.sum()
    for index in likely.argsort()[::-1][:3]:
        label = manifest["classes"][index] if index < len(manifest["classes"]) else str(index)
        print(f"{label}: {100 * likely[index]:.1f}%")
    return 0


def clock(run, x):
    """The median over about a second, after a warm-up."""
    for _ in range(10):
        run(x)
    times = []
    end = time.perf_counter() + 1.0
    while time.perf_counter() < end or len(times) < 10:
        start = time.perf_counter()
        run(x)
        times.append(time.perf_counter() - start)
    times.sort()
    print(
        f"latency: median {1e3 * times[len(times) // 2]:.3f} ms, "
        f"p90 {1e3 * times[int(0.9 * len(times))]:.3f} ms, {len(times)} runs"
    )


if __name__ == "__main__":
    sys.exit(main())
