"""``compress profile`` on devices: one or several at once, at once or from a queue file later."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compress.cli import homecoming, screen
from compress.errors import BadInput, CheckFailed, CompressError, RunFolderError
from compress.profiling.device_address import RpcDevice, SshDevice, parse

FIELDS = {"bundle": str, "device": str, "runtime": (str, type(None))}


def profile(bundle: str, devices: Sequence[str], runtime: str | None, as_json: bool, quiet: bool = False) -> int:
    """Measure a bundle on devices, all at once, bring what was found home and print it.

    Raises:
        BadInput: an address has another form; a device can't be reached or lacks something.
        CheckFailed: the bundle is damaged, or a device gives other outputs than the golden ones.
    """
    documents, error = measured(bundle, devices, runtime, quiet)
    if as_json:
        screen.emit(documents[0] if len(documents) == 1 and "error" not in documents[0] else documents)
    else:
        _print(documents)
    if error is not None:
        raise error
    return 0


def measured(
    bundle: str, devices: Sequence[str], runtime: str | None, quiet: bool
) -> tuple[list[dict[str, Any]], CompressError | None]:
    """What was found on each device, and the first thing that went wrong meanwhile.

    Raises:
        BadInput: an address has another form, or the only device can't be reached.
        CheckFailed: the bundle is damaged.
    """
    from compress.profiling import local

    addresses = [parse(device) for device in devices]
    if len(set(map(str, addresses))) < len(addresses):
        raise BadInput("--device: the same device is there twice; give each once")
    local.existing(Path(bundle))
    results = [(str(address), found) for address, found in _all(Path(bundle), addresses, runtime, quiet)]
    if len(results) == 1 and isinstance(results[0][1], CompressError):
        raise results[0][1]
    documents: list[dict[str, Any]] = []
    errors: list[CompressError] = [found for _, found in results if isinstance(found, CompressError)]
    for address, found in results:
        if isinstance(found, CompressError):
            documents.append({"address": address, "error": found.sentence})
            continue
        try:
            home = homecoming.bring(Path(bundle), found)
        except RunFolderError as error:  # what was measured is printed all the same
            home = f"printed only: {error.sentence}"
            errors.append(error)
        documents.append({"address": address, **homecoming.document(found), "home": home})
    wrong = [
        address for address, found in results if not isinstance(found, CompressError) and not found.profile.golden_equal
    ]
    if wrong:
        failures = [f"the golden inputs give other outputs on {address}" for address in wrong]
        errors.append(CheckFailed(f"bundle {bundle}", failures))
    return documents, errors[0] if errors else None


def _all(
    bundle: Path, addresses: Sequence[SshDevice | RpcDevice], runtime: str | None, quiet: bool
) -> list[tuple[Any, Any]]:
    from compress.profiling import remote, rpc

    def tell(message: str) -> None:
        if not quiet:
            sys.stderr.write(f"{message}\n")

    boards = [address for address in addresses if isinstance(address, RpcDevice)]
    others = [address for address in addresses if isinstance(address, SshDevice)]
    found: list[tuple[Any, Any]] = list(remote.several(bundle, others, runtime, tell)) if others else []
    for board in boards:
        try:
            found.append((board, rpc.profile(bundle, board, tell)))
        except CompressError as error:
            found.append((board, error))
    return found


def _print(documents: Sequence[Mapping[str, Any]]) -> None:
    from compress.report import words
    from compress.report.terminal import rows_table

    for document in documents:
        if "error" in document:
            screen.show(f"{document['address']}: {document['error']}")
            continue
        predicted = document["predicted_s"]
        rows = [
            ("device", document["device"]),
            ("runtime", words.runtime(document["runtime"])),
            ("golden inputs", "equal, within the tolerance" if document["golden_equal"] else "differ"),
            ("latency, median", words.seconds(document["latency_s"])),
            ("latency, p90", words.seconds(document["latency_p90_s"])),
            ("predicted", words.seconds(predicted)),
            ("MACs", words.count(document["macs"])),
            ("working memory", words.size(document["arena_bytes"])),
            ("file", words.size(document["flash_bytes"])),
            ("conditions", ", ".join(f"{k} {v}" for k, v in document["conditions"].items() if k != "clocks")),
            ("home", document["home"]),
        ]
        moved = document["conditions"].get("moved")
        if moved:
            rows.append(("warning", f"clocks moved while it ran ({', '.join(moved)}): fix them and measure again"))
        screen.show(rows_table(["", ""], [row for row in rows if row[1] != words.DASH]))


def enqueue(queue: str, bundle: str, devices: Sequence[str], runtime: str | None, as_json: bool = False) -> int:
    """Put a bundle for devices into a queue file, to be measured later.

    Raises:
        BadInput: an address has another form, there is no such bundle, or the file can't be written.
    """
    from compress.profiling import local

    path = local.existing(Path(bundle)).resolve()
    lines = [
        json.dumps({"bundle": str(path), "device": device, "runtime": runtime}) for device in devices if parse(device)
    ]
    try:
        with Path(queue).open("a", encoding="utf-8") as file:
            file.write("".join(f"{line}\n" for line in lines))
    except OSError as error:
        raise BadInput(f"--queue {queue}: it can't be written ({error.strerror}); give another file") from None
    if as_json:
        screen.emit({"queue": queue, "added": [json.loads(line) for line in lines]})
    else:
        screen.show(f"{len(lines)} in {queue}; measure them with: compress profile --queue {queue}")
    return 0


def work_off(queue: str, as_json: bool, quiet: bool) -> int:
    """Measure what a queue file holds. What is done leaves the file; what can't be done yet stays in it.

    As JSON it is one list, an entry for every one that was tried, with its error where there was one.

    Raises:
        BadInput: there is no such file, or it holds something else.
        CompressError: the first of the errors, after everything was tried.
    """
    entries = _read(queue)
    first: CompressError | None = None
    tried: list[dict[str, Any]] = []
    for entry in entries:
        try:
            documents, error = measured(entry["bundle"], [entry["device"]], entry["runtime"], quiet)
        except CompressError as raised:
            documents, error = [{"address": entry["device"], "error": raised.sentence}], raised
        tried += [{"bundle": entry["bundle"], **document} for document in documents]
        if not as_json and any("error" not in document for document in documents):
            _print(documents)
        if error is not None:
            if not quiet:
                sys.stderr.write(f"{entry['bundle']} on {entry['device']}: {error.sentence}\n")
            first = first or error
            continue
        left = _read(queue)  # again: others may have been put there meanwhile
        if entry in left:
            left.remove(entry)
            _write(queue, left)
    if as_json:
        screen.emit(tried)
    if first is not None:
        raise first
    return 0


def _read(queue: str) -> list[dict[str, Any]]:
    try:
        text = Path(queue).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"--queue {queue}: it can't be read ({error}); give a file that --queue made") from None
    entries = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            entry = json.loads(line)
            right = isinstance(entry, dict) and set(entry) == set(FIELDS)
            right = right and all(isinstance(entry[name], kind) for name, kind in FIELDS.items())  # type: ignore[arg-type]
        except ValueError:
            right = False
        if not right:
            raise BadInput(f"--queue {queue}: line {number} isn't one of its entries; take it out")
        entries.append(entry)
    return entries


def _write(queue: str, entries: Sequence[Mapping[str, Any]]) -> None:
    partial = Path(f"{queue}.partial")
    partial.write_text("".join(f"{json.dumps(entry)}\n" for entry in entries), encoding="utf-8")
    partial.replace(queue)


__all__ = ["enqueue", "profile", "work_off"]
