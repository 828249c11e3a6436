"""The cache: what is kept comes back byte for byte or not at all, and it stays within its limit."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest

from compress.cache import ENTRY, FILES, Cache, digest, limit_bytes, location, users
from compress.errors import BadInput

KEY, OTHER, THIRD = (letter * 64 for letter in "abc")
CONTENT = {"model.onnx": b"\x00\x01" * 500, "library/lib/model.so": b"code", ".8-bits/model.onnx": b"wide"}


class Words(list):
    __call__ = list.append


@pytest.fixture
def source(tmp_path) -> Path:
    folder = tmp_path / "source"
    for name, content in CONTENT.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def cache(tmp_path) -> Cache:
    return Cache(tmp_path / "cache", 100_000)


def kept(cache: Cache, key: str, source: Path) -> None:
    said = Words()
    cache.keep(key, "candidate", {"model": "resnet", "candidate": key[:2]}, source, said)
    assert said == []


def taken(cache: Cache, key: str, folder: Path) -> tuple[bool, dict[str, bytes], list[str]]:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    said = Words()
    found = cache.take(key, folder, said)
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return found, files, list(said)


def test_what_is_kept_comes_back_and_nothing_else(cache, source, tmp_path):
    assert taken(cache, KEY, tmp_path / "out") == (False, {}, [])
    kept(cache, KEY, source)
    assert taken(cache, KEY, tmp_path / "out") == (True, CONTENT, [])
    assert taken(cache, OTHER, tmp_path / "out") == (False, {}, [])
    (entry,) = cache.entries()
    on_disk = sum(path.stat().st_size for path in (cache.path / KEY).rglob("*") if path.is_file())
    assert (entry.key, entry.kind, entry.about["model"], entry.bytes) == (KEY, "candidate", "resnet", on_disk)


def test_what_was_kept_first_stays(cache, source, tmp_path):
    kept(cache, KEY, source)
    (source / "model.onnx").write_bytes(b"another")
    kept(cache, KEY, source)
    assert taken(cache, KEY, tmp_path / "out")[1] == CONTENT
    assert list(cache.path.glob(".partial-*")) == []


def _flip(entry: Path) -> None:
    path = entry / FILES / "model.onnx"
    content = bytearray(path.read_bytes())
    content[17] ^= 1
    path.write_bytes(bytes(content))


def _rewrite(**changes: object):
    def damage(entry: Path) -> None:
        document = json.loads((entry / ENTRY).read_text())
        (entry / ENTRY).write_text(json.dumps({**document, **changes}))

    return damage


def _link(entry: Path) -> None:
    path = entry / FILES / "model.onnx"
    copy = entry.parent.parent / "elsewhere"
    path.rename(copy)
    path.symlink_to(copy)


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (_flip, "model.onnx has been changed"),
        (lambda entry: (entry / FILES / "model.onnx").unlink(), "model.onnx is missing"),
        (lambda entry: (entry / FILES / "model.onnx").write_bytes(b""), "model.onnx has been changed"),
        (lambda entry: (entry / ENTRY).write_text('{"schema": 1, '), "its entry.json can't be read"),
        (lambda entry: (entry / ENTRY).write_bytes(b"\xff\xfe\x00"), "its entry.json can't be read"),
        (lambda entry: (entry / ENTRY).unlink(), "its entry.json can't be read"),
        (_rewrite(schema=2), "its entry.json can't be read"),
        (_rewrite(key=OTHER), "its entry.json can't be read"),
        (_rewrite(files={"../../escaped": "0"}), "../../escaped lies outside"),
        (_rewrite(files={"/escaped": "0"}), "/escaped lies outside"),
        (_link, "model.onnx lies outside"),
    ],
)
def test_a_damaged_entry_is_dropped_and_said_and_leaves_nothing(cache, source, tmp_path, damage, why):
    kept(cache, KEY, source)
    kept(cache, OTHER, source)
    damage(cache.path / KEY)
    found, files, said = taken(cache, KEY, tmp_path / "out")
    assert (found, files) == (False, {})
    assert said == [f"the cache's entry {KEY[:12]} was damaged ({why}): dropped, and made anew"]
    assert not (tmp_path / "escaped").exists()
    assert [entry.key for entry in cache.entries()] == [OTHER]
    kept(cache, KEY, source)
    assert taken(cache, KEY, tmp_path / "out") == (True, CONTENT, [])


def test_what_was_used_longest_ago_goes_first(source, tmp_path):
    measure = Cache(tmp_path / "measure", 10**6)
    kept(measure, KEY, source)
    one = measure.entries()[0].bytes
    cache = Cache(tmp_path / "cache", 2 * one + one // 2)
    now = time.time()
    for age, key in ((200, KEY), (100, OTHER)):
        kept(cache, key, source)
        os.utime(cache.path / key / ENTRY, (now - age, now - age))
    assert taken(cache, KEY, tmp_path / "out")[0]  # from now on OTHER was used longest ago
    kept(cache, THIRD, source)
    assert {entry.key for entry in cache.entries()} == {KEY, THIRD}
    assert sum(entry.bytes for entry in cache.entries()) <= cache.limit


def test_what_alone_is_too_large_is_not_kept_and_drives_nothing_out(cache, source, tmp_path):
    kept(cache, KEY, source)
    (source / "large").write_bytes(bytes(cache.limit))
    kept(cache, OTHER, source)
    assert [entry.key for entry in cache.entries()] == [KEY]


def test_what_a_killed_process_left_is_never_taken_and_goes_in_time(cache, source, tmp_path):
    kept(cache, KEY, source)
    fresh, stale = (cache.path / f".partial-{name}" for name in ("fresh", "stale"))
    for partial in (fresh, stale):
        shutil.copytree(cache.path / KEY, partial)
    os.utime(stale, (time.time() - 7200,) * 2)
    assert [entry.key for entry in cache.entries()] == [KEY]
    kept(cache, OTHER, source)
    assert fresh.is_dir()  # whoever makes it may still be at it
    assert not stale.exists()
    assert cache.clear() == 2
    assert list(cache.path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_said_and_costs_nothing_else(source, tmp_path):
    (tmp_path / "file").write_text("no folder")
    said = Words()
    Cache(tmp_path / "file" / "cache", 10**6).keep(KEY, "candidate", {}, source, said)
    assert len(said) == 1
    assert "can't be written" in said[0]


def test_the_users_cache_has_a_place_and_a_limit_that_can_be_set(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("COMPRESS_CACHE_BYTES", "12345")
    assert users() == Cache(tmp_path / "compress" / "results", 12345)
    assert location() == tmp_path / "compress" / "results"
    monkeypatch.setenv("COMPRESS_CACHE_BYTES", "0")
    assert users() is None
    monkeypatch.delenv("COMPRESS_CACHE_BYTES")
    assert limit_bytes() == 2 * 1024**3
    for wrong in ("much", "-1", "1.5", ""):
        monkeypatch.setenv("COMPRESS_CACHE_BYTES", wrong)
        with pytest.raises(BadInput, match="COMPRESS_CACHE_BYTES"):
            limit_bytes()


def test_a_digest_depends_on_values_and_not_on_the_order_of_keys():
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1})
    assert len({digest(each) for each in ({"a": 1}, {"a": 2}, {"a": 1.5}, {"b": 1}, {"a": [1]}, {"a": None})}) == 6
