"""Timing calls side by side in one process, and what the machine could do at best.

CUDA calls are timed by CUDA events; CPU calls on one thread by the processor time of the process, in which other
processes' turns do not count; on more threads, where waiting matters, by the wall clock.
"""

import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

if TYPE_CHECKING:
    import torch

Call = Callable[[], Any]

# A sample repeats a short call until it lasts about this long, after untimed calls for about _WARM_SECONDS; a call
# longer than _SLOW is timed _SLOW_SAMPLES times.
_SAMPLE_SECONDS = 0.005
_WARM_SECONDS = 0.05
_SLOW = 1.0
_SLOW_SAMPLES = 3


@dataclass(frozen=True)
class Timing:
    """Median seconds of a call.

    Attributes:
        seconds: median of the undisturbed samples, or of the faster half where fewer than three are undisturbed.
        samples: samples taken.
        undisturbed: samples during which the system did not take the processor away.
        latencies: every sample's seconds, disturbed or not, shortest first.
    """

    seconds: float
    samples: int
    undisturbed: int
    latencies: tuple[float, ...] = field(default=(), compare=False)

    def percentile(self, percent: float) -> float:
        """The latency that ``percent`` of the samples do not exceed, between samples by a straight line."""
        place = (len(self.latencies) - 1) * percent / 100
        low = int(place)
        high = min(low + 1, len(self.latencies) - 1)
        return self.latencies[low] + (place - low) * (self.latencies[high] - self.latencies[low])


def take_turns(calls: Sequence[Call], repeat: int, device: "torch.device") -> list[Timing]:
    """Times calls in turn, A B C A B C …, so that what else the machine does falls on all of them.

    Before each of its samples a call is made untimed for a while, so that none pays for what the call before it put
    into the caches and gave back to the system, nor for the clock rate that the processor chose for it: it takes some
    fifty milliseconds to find another. Slow calls, beside which that is nothing, are only before their first one.

    Args:
        calls: what is timed.
        repeat: samples of each; slow calls get fewer.
    """
    lengths = []
    for call in calls:
        call()
        lengths.append(_sample(call, 1, device)[0])
    samples: list[list[tuple[float, bool]]] = [[] for _ in calls]
    for turn in range(repeat):
        for call, length, taken in zip(calls, lengths, samples, strict=True):
            if length <= _SLOW:
                for _ in range(max(1, round(_WARM_SECONDS / length))):
                    call()
            if length <= _SLOW or turn < _SLOW_SAMPLES:
                taken.append(_sample(call, max(1, min(50, round(_SAMPLE_SECONDS / length))), device))
    return [summarize(taken) for taken in samples]


def summarize(samples: Sequence[tuple[float, bool]]) -> Timing:
    """The :class:`Timing` of samples (seconds, whether undisturbed)."""
    quiet = [seconds for seconds, undisturbed in samples if undisturbed]
    latencies = sorted(seconds for seconds, _ in samples)
    fastest = latencies[: (len(samples) + 1) // 2]
    median = statistics.median(quiet if len(quiet) >= 3 else fastest)
    return Timing(median, len(samples), len(quiet), tuple(latencies))


def _sample(call: Call, times: int, device: "torch.device") -> tuple[float, bool]:
    """Seconds a call, and whether no other process interrupted."""
    if device.type == "cuda":
        return _cuda_seconds(call, times, device), True
    import torch

    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    before = _interruptions()
    start = clock()
    for _ in range(times):
        call()
    seconds = (clock() - start) / times
    return seconds, _interruptions() == before


def _interruptions() -> int:
    """How often the system took the processor away from this process, where it counts that."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw if resource else 0


def _cuda_seconds(call: Call, times: int, device: "torch.device") -> float:
    import torch

    with torch.cuda.device(device):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        for _ in range(times):
            call()
        end.record()
        torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3 / times


def peak_bytes(call: Call, device: "torch.device") -> int:
    """Most bytes that PyTorch's allocator holds at once during a call beyond what it held before.

    On a CPU from the profiler's record of allocations; scratch memory inside oneDNN or MKL is in neither figure.
    """
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
        held = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - held
    # The profiler's own log, which otherwise reports a missing GPU as an error.
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True, acc_events=True) as profile:
        result = call()
    del result
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    held = most = 0
    for event in sorted((event for event in events if event["name"] == "[memory]"), key=lambda event: event["ts"]):
        held += event["args"]["Bytes"]
        most = max(most, held)
    return most


@dataclass(frozen=True)
class Ceilings:
    """What the machine does at best in this run.

    Attributes:
        bytes_per_second: read and written by a copy much larger than the caches.
        flops_per_second: of a large matrix product.
    """

    bytes_per_second: float
    flops_per_second: float

    def floor(self, size: float, flops: float) -> float:
        """Seconds that moving ``size`` bytes or computing ``flops`` operations takes at least."""
        return max(size / self.bytes_per_second, flops / self.flops_per_second)

    def facts(self) -> dict[str, float]:
        """As a report's setting says it."""
        return {"copy_gb_per_second": self.bytes_per_second / 1e9, "matmul_gflops": self.flops_per_second / 1e9}


def ceilings(device: "torch.device", dtype: "torch.dtype", repeat: int = 5) -> Ceilings:
    """Measures the copy bandwidth and the rate of matrix products of a dtype."""
    import torch

    large = device.type == "cuda"
    source = torch.ones(2 ** (28 if large else 26), device=device)
    target = torch.empty_like(source)
    side = 8192 if large else 1024
    a = torch.ones(side, side, device=device, dtype=dtype)
    copy, product = take_turns([lambda: target.copy_(source), lambda: a @ a], repeat, device)
    return Ceilings(2 * source.nbytes / copy.seconds, 2 * side**3 / product.seconds)


def machine(device: "torch.device") -> dict[str, Any]:
    """What a run was measured on."""
    import torch

    cuda = device.type == "cuda"
    timer = "CUDA events" if cuda else "processor time" if torch.get_num_threads() == 1 else "wall clock"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else f"{processor()}, {_instructions()}",
        "timer": timer,
        "threads": torch.get_num_threads(),
        "load": None if cuda else round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def _instructions() -> str:
    """The vector instructions that PyTorch's own kernels use here, such as ``AVX2``."""
    import torch

    return torch.backends.cpu.get_cpu_capability()


def processor() -> str:
    """The CPU's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{name}, {os.cpu_count()} cores"
