"""``verify`` and ``profile``: what is right passes, what is damaged is exit 4 in one line, nothing is executed."""

from __future__ import annotations

import hashlib
import io
import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_calls import Call, Finished

from compress.errors import CheckFailed
from compress.profiling.local import macs
from compress.profiling.verify import verify


@pytest.fixture
def bundle(finished: Finished, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished.path / "bundle", tmp_path / "bundle"))


def edit(bundle: Path, **changes: Any) -> None:
    """Change the manifest."""
    document = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_text(json.dumps({**document, **changes}))


def replace(bundle: Path, name: str, content: bytes) -> None:
    """Change a file and the manifest with it, as somebody would who wants it to pass."""
    (bundle / name).write_bytes(content)
    files = json.loads((bundle / "manifest.json").read_text())["files"]
    for entry in files:
        if entry["path"] == name:
            entry.update(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))
    edit(bundle, files=files)


def golden(bundle: Path, **changes: Any) -> bytes:
    """The golden file with some of its arrays changed."""
    with np.load(bundle / "golden.npz") as arrays:
        content = {**arrays, **changes}
    buffer = io.BytesIO()
    np.savez(buffer, **{name: array for name, array in content.items() if array is not None})
    return buffer.getvalue()


def test_a_bundle_as_it_was_made_passes_every_check(inside: Call, bundle: Path, finished: Finished) -> None:
    ended = inside("verify", "bundle", "--json")
    assert (ended.status, ended.err) == (0, "")
    assert {check["name"]: check["status"] for check in ended.json["checks"]} == {
        "hashes": "ok",
        "golden inputs": "ok",
        "accuracy": "ok",
    }
    best = next(c for c in finished.front["candidates"] if c["id"] == finished.front["best"])
    # On the same machine the very file gives the very accuracy.
    assert ended.json["accuracy"] == ended.json["recorded_accuracy"]
    assert ended.json["accuracy"]["value"] == best["accuracy"]["value"]
    text = inside("verify", "bundle")
    assert text.out.rstrip().endswith("bundle: ok")


def test_a_changed_file_fails_by_its_name(inside: Call, bundle: Path) -> None:
    (bundle / "run.py").write_text("print('changed')")
    ended = inside("verify", "bundle", "--json")
    assert ended.status == 4
    assert not ended.json["ok"]
    assert ended.err == (
        "error: bundle bundle: hashes: run.py has been changed (its SHA-256 differs from the manifest's)\n"
    )
    assert inside("profile", "bundle").status == 4


def test_a_missing_file_fails_by_its_name(inside: Call, bundle: Path) -> None:
    (bundle / "golden.npz").unlink()
    assert "golden.npz is missing" in inside("verify", "bundle").err


@pytest.mark.parametrize("path", ["../outside", "/etc/passwd", "a/../../outside", ""])
def test_a_path_that_leaves_the_bundle_fails(inside: Call, bundle: Path, path: str) -> None:
    (bundle.parent / "outside").write_bytes(b"secret")
    files = json.loads((bundle / "manifest.json").read_text())["files"]
    digest = hashlib.sha256(b"secret").hexdigest()
    edit(bundle, files=[*files, {"path": path, "sha256": digest, "bytes": 6}])
    ended = inside("verify", "bundle")
    assert ended.status == 4
    assert "leaves the bundle" in ended.error


def test_a_link_that_leaves_the_bundle_fails(inside: Call, bundle: Path) -> None:
    shutil.move(bundle / "run.py", bundle.parent / "elsewhere.py")
    (bundle / "run.py").symlink_to(bundle.parent / "elsewhere.py")
    assert "run.py lies outside the bundle" in inside("verify", "bundle").err


def test_other_golden_outputs_fail_and_so_do_outputs_that_are_no_numbers(inside: Call, bundle: Path) -> None:
    with np.load(bundle / "golden.npz") as arrays:
        outputs = arrays["outputs"]
    replace(bundle, "golden.npz", golden(bundle, outputs=outputs[::-1].copy()))
    ended = inside("verify", "bundle")
    assert ended.status == 4
    assert "golden inputs: " in ended.err
    assert "0.05 allowed" in ended.err
    replace(bundle, "golden.npz", golden(bundle, outputs=np.full_like(outputs, np.nan)))
    assert "must be finite float32" in inside("verify", "bundle").err


@pytest.mark.parametrize(
    "changes",
    [
        {"inputs": None},
        {"inputs": np.zeros((8, 1, 16, 16), np.float32)},
        {"inputs": np.zeros((2, 1, 32, 32), np.float32)},
        {"inputs": np.zeros((8, 1, 32, 32), np.float64)},
        {"inputs": np.zeros((0, 1, 32, 32), np.float32), "outputs": np.zeros((0, 10), np.float32)},
        {"inputs": np.array([{"a": 1}], dtype=object)},
    ],
    ids=["missing", "another size", "another number", "float64", "none", "a pickle"],
)
def test_golden_inputs_of_another_kind_fail(inside: Call, bundle: Path, changes: dict[str, Any]) -> None:
    replace(bundle, "golden.npz", golden(bundle, **changes))
    ended = inside("verify", "bundle")
    assert ended.status == 4
    assert ended.err.count("\n") == 1
    assert "golden.npz" in ended.err


def test_a_network_that_reads_other_files_is_not_loaded(inside: Call, bundle: Path) -> None:
    import onnx

    model = onnx.load(bundle / "model.onnx")
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")
    replace(bundle, "model.onnx", model.SerializeToString())
    ended = inside("verify", "bundle")
    assert ended.status == 4
    assert "model.onnx reads weights from other files" in ended.err


def test_data_from_a_program_is_loaded_only_if_it_is_asked_for(inside: Call, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "data.py").write_text("open('executed', 'w')\ndef make(): return None\n")
    edit(bundle, dataset="data.py:make")
    ended = inside("verify", "bundle", "--json")
    assert ended.status == 0
    assert ended.json["checks"][2]["status"] == "skipped"
    assert "isn't run unasked" in ended.json["checks"][2]["detail"]
    assert not (tmp_path / "executed").exists()


def test_accuracy_is_skipped_with_the_reason_where_the_data_is_not_there_or_another(inside: Call, bundle: Path) -> None:
    edit(bundle, dataset="cifar10")
    accuracy = inside("verify", "bundle", "--json").json["checks"][2]
    assert accuracy["status"] == "skipped"
    assert accuracy["detail"] == "cifar10 isn't on this machine; name its place: --data cifar10:DIR"
    edit(bundle, dataset="digits", dataset_sha256="0" * 64)
    accuracy = inside("verify", "bundle", "--json").json["checks"][2]
    assert accuracy["status"] == "skipped"
    assert "its SHA-256 differs" in accuracy["detail"]


def test_data_that_is_named_must_be_the_same(inside: Call, bundle: Path) -> None:
    edit(bundle, dataset="cifar10")
    assert inside("verify", "bundle", "--data", "digits", "--json").json["checks"][2]["status"] == "ok"
    edit(bundle, dataset_sha256="0" * 64)
    ended = inside("verify", "bundle", "--data", "digits")
    assert ended.status == 2
    assert "isn't the data that the bundle was measured on" in ended.error
    assert inside("verify", "bundle", "--data", "digts").status == 2


def test_an_accuracy_outside_its_interval_fails_and_both_are_told(inside: Call, bundle: Path) -> None:
    recorded = json.loads((bundle / "manifest.json").read_text())["accuracy"]
    edit(bundle, accuracy={**recorded, "value": 50.0, "low": 45.0, "high": 55.0})
    ended = inside("verify", "bundle")
    assert ended.status == 4
    assert f"{recorded['value']:.2f}% here, 50.00% in the manifest (95% interval 45.00 to 55.00" in ended.err
    edit(bundle, accuracy={**recorded, "value": recorded["low"]})
    assert inside("verify", "bundle").status == 0


def failed(bundle: Path) -> bool:
    """True if the bundle doesn't pass; anything but a verdict or a sentence with exit status 4 fails the test."""
    try:
        return not verify(bundle).ok
    except CheckFailed as error:
        return "\n" not in str(error) or pytest.fail(str(error))


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in a JSON document; of long lists the first element's only."""
    yield path
    if isinstance(value, dict):
        for key, item in value.items():
            yield from places(item, (*path, key))
    elif isinstance(value, list) and value:
        yield from places(value[0], (*path, 0))


def test_a_manifest_with_a_value_of_any_other_type_is_damaged_or_still_right(bundle: Path) -> None:
    edit(bundle, dataset="cifar10")
    text = (bundle / "manifest.json").read_text()
    refused = 0
    for path in places(json.loads(text)):
        for wrong in (None, 5, -1, 1e300, "x", "", [], {}, [[]], True, {"a": None}):
            document = json.loads(text)
            holder: Any = document
            for key in path[:-1]:
                holder = holder[key]
            if path:
                holder[path[-1]] = wrong
            (bundle / "manifest.json").write_text(json.dumps(document if path else wrong))
            refused += failed(bundle)
    assert refused > 200


@pytest.mark.parametrize("name", ["manifest.json", "golden.npz", "model.onnx"])
def test_damage_of_any_kind_ends_in_a_sentence(finished: Finished, bundle: Path, name: str) -> None:
    edit(bundle, dataset="cifar10")
    noise, whole = random.Random(0), (bundle / name).read_bytes()
    manifest = (bundle / "manifest.json").read_bytes()
    for _ in range(60):
        content = bytearray(whole)
        if noise.random() < 0.5:
            del content[noise.randrange(len(content)) :]
        else:
            for _ in range(noise.choice([1, 8])):
                content[noise.randrange(len(content))] ^= 1 << noise.randrange(8)
        (bundle / "manifest.json").write_bytes(manifest)
        if name == "manifest.json":
            (bundle / name).write_bytes(content)
        else:
            replace(bundle, name, bytes(content))
        failed(bundle)


def test_what_is_no_bundle_is_named(inside: Call, finished: Finished, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    ended = inside("verify", "empty")
    assert ended.status == 4
    assert "there is no manifest.json: give the folder of a bundle" in ended.error
    assert f"give {finished.path / 'bundle'}" in inside("verify", finished.path).error


def test_profile_gives_every_key_and_null_where_unknown(inside: Call, bundle: Path, finished: Finished) -> None:
    ended = inside("profile", "bundle", "--json", "--runtime", "onnxruntime")
    assert (ended.status, ended.err) == (0, "")
    found = ended.json
    assert list(found) == [
        "device", "runtime", "golden_equal", "latency_s", "latency_p90_s", "instructions", "macs", "arena_bytes",
        "flash_bytes", "conditions",
    ]  # fmt: skip
    best = next(c for c in finished.front["candidates"] if c["id"] == finished.front["best"])
    assert found["golden_equal"] is True
    assert found["runtime"] == "onnxruntime"
    assert 0 < found["latency_s"] <= found["latency_p90_s"]
    assert found["macs"] == best["macs"]
    assert found["flash_bytes"] == (bundle / "model.onnx").stat().st_size
    assert (found["instructions"], found["arena_bytes"]) == (None, None)
    assert found["conditions"]["batch"] == 1
    said = inside("profile", "bundle").out
    assert "latency, median" in said
    assert "latency_s in" in said, "both runtimes are timed"


def test_macs_of_a_file_are_those_of_its_candidate(finished: Finished) -> None:
    for candidate in (finished.front["baseline"], *finished.front["candidates"]):
        assert macs(finished.path / candidate["artifacts"][0]["path"]) == candidate["macs"]
