"""Words and tables from the rows of :mod:`benchmarks.pruners`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import common, pruners

NOISY = 1.5


def find(rows: Sequence[Mapping[str, Any]], **wanted: Any) -> Mapping[str, Any]:
    """The only row with these values."""
    (row,) = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
    return row


def bought(rows: Sequence[Mapping[str, Any]]) -> str:
    """What the MACs that our pruning removed bought in latency, in a sentence a factor."""
    said = []
    for row in rows:
        if row["pruner"] != pruners.OURS or row["amounts"] is not None:
            continue
        liked = [
            each
            for each in rows
            if each["amounts"] == pruners.LIKED and each["macs_original_over_asked"] == row["macs_original_over_asked"]
        ]
        said.append(
            f"{row['macs_original_over_pruned']:.2f} times fewer MACs, in any counts, run "
            f"{row['speedup_1_thread']:.2f} times as fast on one thread and {row['speedup_2_threads']:.2f} times on two"
            + "".join(
                f"; {each['macs_original_over_pruned']:.2f} times fewer, in counts that the target likes, "
                f"{each['speedup_1_thread']:.2f} and {each['speedup_2_threads']:.2f} times, with "
                f"{each['accuracy_percent']:.2f}% instead of {row['accuracy_percent']:.2f}%"
                for each in liked
            )
            + "."
        )
    return " ".join(said)


def peers(rows: Sequence[Mapping[str, Any]]) -> str:
    """Our accuracy beside the best of the peer's at each factor, and what the peer couldn't do."""
    said = []
    for factor in dict.fromkeys(row["macs_original_over_asked"] for row in rows):
        these = [row for row in rows if row["macs_original_over_asked"] == factor]
        others = [row for row in these if row["pruner"] == pruners.PEER and row["failed"] is None]
        if factor is None or not others:
            continue
        best = max(others, key=lambda row: row["accuracy_percent"])
        mine = find(these, pruner=pruners.OURS, amounts=None)
        said.append(
            f"At {factor:g} times fewer MACs the best of Torch-Pruning's has {best['accuracy_percent']:.2f}% "
            f"({best['amounts']}), ours {mine['accuracy_percent']:.2f}%."
        )
    failed = [row for row in rows if row["failed"]]
    if failed:
        said.append(
            f"With nothing held fixed, {len(failed)} of its attempts gave no network that runs "
            f"(`{failed[0]['failed']}`): where a shortcut pads channels with zeros it loses track of which are which. "
            "So its other rows hold the layers that write to the shortcuts, and prune inside the blocks."
        )
    return " ".join(said)


def noise(rows: Sequence[Mapping[str, Any]]) -> str:
    """How far the latencies can be trusted."""
    units = ("1_thread", "2_threads")
    busy = max(row[f"other_work_{unit}_percent"] or 0.0 for row in rows for unit in units)
    timed = [row for row in rows if row["latency_1_thread_ms"] is not None]
    words = f"Other programs used up to {busy:.1f}% of the cores while latencies were taken."
    for unit, name in zip(units, ("one thread", "two threads"), strict=True):
        stalled = [row for row in timed if row[f"latency_{unit}_p90_ms"] > NOISY * row[f"latency_{unit}_ms"]]
        if stalled:
            words += (
                f" On {name} {len(stalled)} of the {len(timed)} files are noisy: a 90th percentile of more than "
                f"{NOISY:g} times the median."
            )
    return words


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line a row."""
    header = [
        "pruned by",
        "amounts",
        "times fewer MACs, asked and found",
        "million MACs",
        "thousand parameters",
        "accuracy, %",
        "95% interval",
        "pruning, s",
        "1 thread, ms",
        "2 threads, ms",
        "speedup, 1 and 2",
    ]

    def line(row: Mapping[str, Any]) -> list[str]:
        amounts = [row["amounts"] or "", "" if row["scope"] == "whole network" else row["scope"]]
        asked = row["macs_original_over_asked"]
        names = [row["pruner"], ", ".join(filter(None, amounts)) or "—"]
        if row["failed"]:
            return [*names, f"{asked:g}, —", "—", "—", "doesn't run", *["—"] * 5]
        return [
            *names,
            "—" if asked is None else f"{asked:g}, {row['macs_original_over_pruned']:.2f}",
            common.shown(row["macs"] / 1e6, 2),
            common.shown(row["parameters"] / 1e3, 1),
            common.shown(row["accuracy_percent"], 2),
            f"{row['accuracy_low_percent']:.2f} to {row['accuracy_high_percent']:.2f}",
            "—" if row["prune_seconds"] is None else common.shown(row["prune_seconds"], 1),
            common.shown(row["latency_1_thread_ms"], 3),
            common.shown(row["latency_2_threads_ms"], 3),
            f"{row['speedup_1_thread']:.2f}, {row['speedup_2_threads']:.2f}",
        ]

    return common.markdown_table(header, [line(row) for row in rows], text_columns=2)
