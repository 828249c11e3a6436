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
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = options.threads
    settings.log_severity_level = 3
    file = "patterns/network.onnx" if options.measurements else "model.onnx"
    if options.measurements and not (HERE / file).is_file():
        print(f"error: this bundle has no {file}: it takes images", file=sys.stderr)
        return 2
    session = onnxruntime.InferenceSession(str(HERE / file), settings, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(x):
        return session.run(None, {name: x})[0]

    if options.measurements:
        return recover(np, run, manifest, pathlib.Path(options.measurements))
    if options.image:
        return classify(np, run, manifest, pathlib.Path(options.image))
    status = check(np, run, manifest)
    if options.time and status == 0:
        clock(np, run)
    return status


def check(np, run, manifest):
    """Compare with the golden outputs; hashes first, so that a damaged copy is called one."""
    for entry in manifest["files"]:
        digest = hashlib.sha256((HERE / entry["path"]).read_bytes()).hexdigest()
        if digest != entry["sha256"]:
            print(f"error: {entry['path']} has been changed: copy the bundle again", file=sys.stderr)
            return 4
    golden = np.load(HERE / "golden.npz", allow_pickle=False)
    outputs = np.concatenate([run(x[None]) for x in golden["inputs"]])
    scale = float(np.abs(golden["outputs"]).max()) or 1.0
    difference = float(np.abs(outputs - golden["outputs"]).max()) / scale
    equal = difference <= manifest["tolerance"]
    if manifest["task"] == "classification":
        same = int((outputs.argmax(1) == golden["outputs"].argmax(1)).sum())
        print(f"golden inputs: {same} of {len(outputs)} classes equal, largest relative difference {difference:.2g}")
    else:
        print(f"golden inputs: largest relative difference {difference:.2g}")
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


def clock(np, run):
    """The median over about a second, after a warm-up."""
    x = np.load(HERE / "golden.npz", allow_pickle=False)["inputs"][:1]
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
