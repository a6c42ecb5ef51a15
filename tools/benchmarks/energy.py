"""Energy of a call, where the device counts it: NVIDIA's counter for a GPU, Linux's RAPL for a processor."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_POWERCAP = Path("/sys/class/powercap")
# Counters move every few milliseconds: shorter measurements would say little.
_SECONDS = 0.5
_MOST_CALLS = 200


class EnergyMeter:
    """Reads a device's energy counter. It covers the whole device: other work on it is in the figure.

    Attributes:
        reason: why there is no figure; None where there is one.
    """

    def __init__(self, device: "torch.device", powercap: Path = _POWERCAP) -> None:
        self.reason: str | None = None
        self._read: Callable[[], list[float]] = list
        self._wraps: list[float] = []
        if device.type == "cuda":
            self._open_nvml(device.index or 0)
        else:
            self._open_rapl(powercap)

    def joules(self, call: Callable[[], Any], seconds: float) -> float | None:
        """Of one call that takes about ``seconds``; None where the device does not say."""
        if self.reason is not None:
            return None
        times = max(1, min(_MOST_CALLS, round(_SECONDS / seconds)))
        before = self._read()
        for _ in range(times):
            call()
        self._settle()
        used = zip(before, self._read(), self._wraps, strict=True)
        return sum((after - start) % wrap for start, after, wrap in used) / times

    def _settle(self) -> None:
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()

    def _open_nvml(self, index: int) -> None:
        try:
            nvml = importlib.import_module("pynvml")
            nvml.nvmlInit()
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            self._read = lambda: [nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3]
            self._read()
            self._wraps = [float("inf")]
        except ModuleNotFoundError:
            self.reason = "pynvml is not installed"
        except Exception as error:  # NVML has an error class of its own for every code
            self.reason = f"NVML: {error}"

    def _open_rapl(self, powercap: Path) -> None:
        packages = sorted(powercap.glob("intel-rapl:?"))
        if not packages:
            self.reason = "the system shows no RAPL counters"
            return
        try:
            self._wraps = [_microjoules(package / "max_energy_range_uj") for package in packages]
            self._read = lambda: [_microjoules(package / "energy_uj") for package in packages]
            self._read()
        except (OSError, ValueError) as error:
            self.reason = f"RAPL counters cannot be read: {error.strerror if isinstance(error, OSError) else error}"


def _microjoules(path: Path) -> float:
    return int(path.read_text(encoding="ascii")) / 1e6
