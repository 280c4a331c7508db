"""Time and memory of functions that are compared in one process; the other benchmarks import this module.

The functions take turns, so that a machine that speeds up or slows down does so for all of them.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile


def median_seconds(
    functions: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    warmup: int,
    seconds: float = 0.0,
    clock: Callable[[], float] = time.perf_counter,
    device: str = "cpu",
) -> dict[str, float]:
    """Median seconds of one call of each function.

    Args:
        functions: what to measure, by name. Each round calls all of them once.
        rounds: measured rounds at least.
        warmup: rounds before them that are not measured.
        seconds: time in all after which no further round begins.
        clock: returns seconds: of the wall, or of the processor.
        device: where the functions compute; on a GPU each call is waited for.
    """
    taken: dict[str, list[float]] = {name: [] for name in functions}
    start, done = time.perf_counter(), 0
    while done < warmup + rounds or time.perf_counter() - start < seconds:
        for name, function in functions.items():
            began = clock()
            function()
            if device != "cpu":
                torch.cuda.synchronize(device)
            taken[name].append(clock() - began)
        done += 1
    return {name: statistics.median(values[warmup:]) for name, values in taken.items()}


def peak_memory(function: Callable[[], object], device: str = "cpu") -> float:
    """The most MiB that torch's allocator holds during one call, less what it holds before the call."""
    if device != "cpu":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        function()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            function()
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    held = [(e["ts"], e["args"]["Total Allocated"]) for e in events if e.get("name") == "[memory]"]
    held.sort()
    return (max(total for _, total in held) - held[0][1]) / 2**20
