"""build_engine.py against the real bindings of TensorRT 10.3, 10.16 and 11: everything that it touches is there."""

from __future__ import annotations

import pytest

from tests.export.tensorrt_api import RELEASES, asked_of, touched


def test_what_the_script_touches_is_found_in_its_source():
    found = touched()
    for name in ("Builder", "BuilderFlag.GPU_FALLBACK", "IBuilderConfig.set_memory_pool_limit", "OnnxParser.parse"):
        assert name in found
    assert "ICudaEngine.device_memory_size_v2" in found
    assert len(found) > 40


@pytest.mark.parametrize(("package", "version"), RELEASES, ids=[version for _, version in RELEASES])
def test_every_class_flag_and_method_exists(package, version, tmp_path):
    names = touched()
    said = asked_of(package, version, tmp_path, [*names, "NoSuchClass", "IBuilderConfig.no_such_method"])
    assert said["version"] == version
    absent = {name for name, there in said["found"].items() if not there}
    assert absent - {name for name, asked in names.items() if asked} == {"NoSuchClass", "IBuilderConfig.no_such_method"}


@pytest.mark.parametrize(("package", "version"), RELEASES[-1:], ids=["11"])
def test_tensorrt_11_has_no_precision_flags_and_no_calibrator(package, version, tmp_path):
    """Why the precision has to be in the file."""
    gone = ["BuilderFlag.INT8", "BuilderFlag.FP16", "IInt8Calibrator", "ITensor.set_dynamic_range"]
    said = asked_of(package, version, tmp_path, gone)
    assert not any(said["found"].values())
