"""Options and commands about how a run is done: the cache, processes, workers, one run folder at a time."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_calls import QUICK, Call

from compress import runfolder
from compress.cache import Cache

JOB = (*QUICK, "--target", "cpu", "--out", "r")


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cache:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("COMPRESS_CACHE_BYTES", "1000000")
    kept = Cache(tmp_path / "xdg" / "compress" / "results", 10**6)
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "model.onnx").write_bytes(bytes(1000))
    for number, name in enumerate(("float", "macs50-w8")):
        about = {"model": "resnet", "target": "cpu", "candidate": name}
        kept.keep(str(number) * 64, "candidate", about, tmp_path / "made", lambda text: None)
    return kept


def test_the_cache_is_listed_and_cleared(inside: Call, cache: Cache) -> None:
    document = inside("cache", "--json").json
    assert (document["path"], document["limit_bytes"]) == (str(cache.path), 10**6)
    assert document["bytes"] == sum(each["bytes"] for each in document["entries"]) > 2000
    assert {each["about"]["candidate"] for each in document["entries"]} == {"float", "macs50-w8"}
    text = inside("cache").out
    assert "resnet, cpu, macs50-w8" in text
    assert "2 entries" in text
    assert str(cache.path) in text
    cleared = inside("cache", "--clear", "--json").json
    assert cleared == {"path": str(cache.path), "removed": 2, "removed_bytes": document["bytes"]}
    assert inside("cache", "--json").json["entries"] == []
    assert inside("cache").out.startswith("0 entries")
    assert "0 entries removed" in inside("cache", "--clear").out


def test_a_cache_that_is_off_says_so(inside: Call) -> None:
    assert "it is off (COMPRESS_CACHE_BYTES is 0)" in inside("cache").out


def test_a_limit_that_is_no_number_is_refused(inside: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COMPRESS_CACHE_BYTES", "2 GiB")
    for arguments in (("cache",), JOB):
        ended = inside(*arguments)
        assert ended.status == 2
        assert ended.error == "COMPRESS_CACHE_BYTES is '2 GiB'; set it to a whole number of bytes, 0 for no cache"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--processes", "0"), "--processes 0: it must be at least 1"),
        (("--processes", "two"), "--processes 'two': not a whole number; give one such as 8"),
        (("--processes", "2", "--workers", "tcp://a:1"), "give one of them"),
        (("--workers",), "--workers needs a value: --workers ADDRESS"),
        (("--processes", "2", "--tune", "1"), "leave --processes out"),
        (("--workers", "tcp://a:1", "--tune", "1"), "leave --workers out"),
    ],
)
def test_ways_that_cannot_be_are_refused_before_anything_is_loaded(
    inside: Call, tmp_path: Path, options: tuple[str, ...], problem: str
) -> None:
    ended = inside(*JOB, *options)
    assert ended.status == 2
    assert problem in ended.error
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_which_another_process_works_is_left_alone(inside: Call, tmp_path: Path) -> None:
    folder = tmp_path / "r"
    folder.mkdir()
    with runfolder.locked(folder):
        ended = inside(*JOB, "--resume", "--prune", "none", "-q")
    assert ended.status == 2
    assert ended.error == (
        "output folder r: another process is working in it; wait until that has ended, or choose another --out"
    )
    assert [path.name for path in folder.iterdir()] in ([], ["candidates"])
