"""Times of CUDA graphs, on a stand-in for the device: what is captured, replayed, and said where nothing can be."""

import contextlib
from types import SimpleNamespace

import pytest
import torch

from attnzoo.tools.benchmarks import graphs
from attnzoo.tools.benchmarks.report import layers_table, ops_table
from attnzoo.tools.benchmarks.timing import Timing


class Device:
    """Counts what it is given; a call takes one millisecond for each of its kernels."""

    def __init__(self):
        self.clock = 0.0
        self.capturing = None

    def launch(self, kernel):
        if self.capturing is None:
            self.clock += 1.0
        else:
            self.capturing.kernels.append(kernel)

    def wait(self, device=None):
        if self.capturing is not None:
            raise RuntimeError("operation not permitted when stream is capturing")


@pytest.fixture
def gpu(monkeypatch) -> Device:
    gpu = Device()

    class Graph:
        def __init__(self):
            self.kernels = []

        def replay(self):
            for kernel in self.kernels:
                gpu.launch(kernel)

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.at = gpu.clock

        def elapsed_time(self, end):
            return end.at - self.at

    @contextlib.contextmanager
    def graph(captured, stream):
        gpu.capturing = captured
        try:
            yield
        finally:
            gpu.capturing = None

    stream = SimpleNamespace(wait_stream=lambda other: None)
    fakes = dict(CUDAGraph=Graph, Event=Event, graph=graph, synchronize=gpu.wait, Stream=lambda device: stream)
    fakes |= dict(current_stream=lambda device: stream, stream=contextlib.nullcontext, device=contextlib.nullcontext)
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(graphs, "_SCRATCH_BYTES", 8)
    return gpu


def test_kernels_are_timed_without_the_calls(gpu):
    calls = []

    def call():
        calls.append(1)
        for kernel in range(3):
            gpu.launch(kernel)

    (timing,) = graphs.device_times([call], 4, torch.device("cpu"))
    assert timing.seconds == pytest.approx(3e-3) and timing.samples == 4
    # Before the capture and in it; replays call nothing.
    assert len(calls) == graphs._WARM_CALLS + 1


def test_what_waits_for_a_value_is_not_captured(gpu):
    def waits():
        gpu.launch(0)
        gpu.wait()

    found = graphs.device_times([waits, lambda: gpu.launch(0), None], 2, torch.device("cpu"))
    assert [timing and timing.seconds for timing in found] == [None, pytest.approx(1e-3), None]


def test_both_times_of_a_call(monkeypatch):
    called = [Timing(5.0, 3, 3), Timing(7.0, 3, 2)]
    monkeypatch.setattr(graphs, "take_turns", lambda calls, repeat, device: called)
    seen = []

    def device_times(calls, repeat, device):
        seen.extend(calls)
        return [Timing(1.0, 9, 9), None]

    monkeypatch.setattr(graphs, "device_times", device_times)
    on_gpu = graphs.timed([print, repr], 3, torch.device("cuda"), [True, False])
    assert seen == [print, None]
    assert on_gpu == [
        {"seconds": 1.0, "samples": 9, "undisturbed": 9, "called_seconds": 5.0},
        {"seconds": 7.0, "samples": 3, "undisturbed": 2, "called_seconds": 7.0},
    ]
    on_cpu = graphs.timed([print, repr], 3, torch.device("cpu"))
    assert [side["seconds"] for side in on_cpu] == [5.0, 7.0] and "called_seconds" not in on_cpu[0]


def test_tables_have_a_column_for_calls():
    side = {"form": "triton", "seconds": 1e-3, "ratio": 1.0, "floor_ratio": 2.0, "peak_bytes": 0, "error": 0.0}
    row = {
        "op": "an_op",
        "layer": "A",
        "case": "small",
        "batch": 1,
        "floor_seconds": 5e-4,
        "bytes": 10,
        "sides": [side],
    }
    row["absent"] = [{"form": "peer", "reason": "out of memory"}]
    report = {"setting": {}, "rows": [row]}
    for table in (ops_table, layers_table):
        side.pop("called_seconds", None)
        assert "as called" not in table(report)
        side["called_seconds"] = 4e-3
        lines = table(report).strip().splitlines()
        head = next(line for line in lines if "| form |" in line)
        assert "| ms | as called, ms |" in head and any("| triton | 1 | 4 |" in line for line in lines)
        assert {line.count("|") for line in lines if line.startswith("|")} == {head.count("|")}
