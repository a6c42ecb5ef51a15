"""What a GPU takes for a call, without what Python does between its kernels: the replay of a CUDA graph.

Each replay follows a write that leaves nothing of the call before in the device's cache.
"""

import statistics
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from .timing import Timing, summarize, take_turns

if TYPE_CHECKING:
    import torch

Call = Callable[[], Any]

# Several times the cache of the largest devices.
_SCRATCH_BYTES = 2**28
_WARM_CALLS = 3
# A sample replays a short call until it lasts about this long.
_SAMPLE_SECONDS = 0.005
_MOST_REPLAYS = 50


def timed(
    calls: Sequence[Call], repeat: int, device: "torch.device", captured: Sequence[bool] | None = None
) -> list[dict[str, Any]]:
    """What a report says of each call's time: ``seconds``, ``samples`` and ``undisturbed``.

    On a GPU they are those of its kernels, where it can be captured, and ``called_seconds`` those of its calls.

    Args:
        calls: take turns.
        repeat: samples of each.
        captured: which may be captured (all).
    """
    called = take_turns(calls, repeat, device)
    if device.type != "cuda":
        return [_facts(timing) for timing in called]
    wanted = [call if may else None for call, may in zip(calls, captured or [True] * len(calls), strict=True)]
    on_device = device_times(wanted, repeat, device)
    pairs = zip(on_device, called, strict=True)
    return [{**_facts(best or timing), "called_seconds": timing.seconds} for best, timing in pairs]


def _facts(timing: Timing) -> dict[str, Any]:
    return {"seconds": timing.seconds, "samples": timing.samples, "undisturbed": timing.undisturbed}


def capture(call: Call, device: "torch.device") -> Call | None:
    """The replay of ``call`` as a CUDA graph; None where it cannot be captured, as one that waits for a value."""
    import torch

    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    graph = torch.cuda.CUDAGraph()
    try:
        # What is compiled or cached at a first call must not be captured.
        with torch.cuda.stream(stream):
            for _ in range(_WARM_CALLS):
                call()
        torch.cuda.synchronize(device)
        with torch.cuda.graph(graph, stream=stream):
            kept = call()
    except RuntimeError:
        torch.cuda.synchronize(device)
        return None
    graph.replay()
    torch.cuda.synchronize(device)
    del kept
    return graph.replay


def device_times(calls: Sequence[Call | None], repeat: int, device: "torch.device") -> list[Timing | None]:
    """Times calls in turn, A B C A B C …; None for those that cannot be captured, or are None."""
    import torch

    scratch = torch.empty(_SCRATCH_BYTES, dtype=torch.int8, device=device)
    replays = [None if call is None else capture(call, device) for call in calls]
    times = [None if replay is None else _replays(_seconds(replay, 1, scratch)) for replay in replays]
    samples: list[list[tuple[float, bool]]] = [[] for _ in replays]
    for _ in range(repeat):
        for replay, count, taken in zip(replays, times, samples, strict=True):
            if replay is not None and count is not None:
                taken.append((_seconds(replay, count, scratch), True))
    return [summarize(taken) if taken else None for taken in samples]


def _replays(seconds: float) -> int:
    return max(1, min(_MOST_REPLAYS, round(_SAMPLE_SECONDS / max(seconds, 1e-9))))


def _seconds(replay: Call, times: int, scratch: "torch.Tensor") -> float:
    """Median seconds of a replay."""
    import torch

    with torch.cuda.device(scratch.device):
        events = [tuple(torch.cuda.Event(enable_timing=True) for _ in range(2)) for _ in range(times)]
        for start, end in events:
            # While the device writes, the host hands over what follows: no gap is timed.
            scratch.zero_()
            start.record()
            replay()
            end.record()
        torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in events) / 1e3
