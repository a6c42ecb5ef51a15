"""Fuzzing with hypothesis: the same few cases in every test run, or new ones for as long as FUZZ_SECONDS says.

A case passes where the contract holds, or where the argument that is at fault is named by a ValueError or TypeError;
any other exception is a finding.
"""

import contextlib
import inspect
import os
import re
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import HypothesisException

SECONDS = float(os.environ.get("FUZZ_SECONDS") or 0)

_QUIET = dict(deadline=None, database=None, suppress_health_check=list(HealthCheck))
settings.register_profile("short", derandomize=True, phases=[Phase.generate], **_QUIET)
settings.register_profile("fuzz", max_examples=100, phases=[Phase.generate, Phase.shrink], **_QUIET)

targets = 1
results: dict[str, dict[str, Any]] = {}


def fuzzed(examples: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Makes a test of a check whose argument ``draw`` draws from hypothesis' strategies.

    Args:
        examples: Cases of the short run.
    """

    def decorate(check: Callable[..., None]) -> Callable[..., None]:
        def test(**params: Any) -> None:
            run_cases = _run_for_long if SECONDS else _run_short
            run_cases(check, params, examples)

        test.__name__, test.__doc__, test.__module__ = check.__name__, check.__doc__, check.__module__
        signature = inspect.signature(check)
        kept = [parameter for name, parameter in signature.parameters.items() if name != "draw"]
        test.__signature__ = signature.replace(parameters=kept)
        test.is_fuzzed = True
        return test

    return decorate


def _run_short(check: Callable[..., None], params: dict[str, Any], examples: int) -> None:
    @settings(settings.get_profile("short"), max_examples=examples)
    @given(data=st.data())
    def case(data: st.DataObject) -> None:
        check(**params, draw=data.draw)

    case()


class _TimeIsUp(BaseException):
    """Not an Exception: hypothesis lets it pass."""


def _run_for_long(check: Callable[..., None], params: dict[str, Any], examples: int) -> None:
    end = time.monotonic() + SECONDS / targets
    cases, findings = 0, {}

    def case(data: st.DataObject) -> None:
        nonlocal cases
        if time.monotonic() >= end:
            raise _TimeIsUp
        drawn = []

        def draw(strategy: st.SearchStrategy, label: str | None = None) -> Any:
            drawn.append(data.draw(strategy, label))
            return drawn[-1]

        cases += 1
        try:
            check(**params, draw=draw)
        except Exception as error:
            if not isinstance(error, HypothesisException):
                text = f"{_describe(error)}; drawn: {drawn!r}"
                place = _place(error)
                findings[place] = min(text, findings.get(place, text), key=len)
            raise

    number = int.from_bytes(os.urandom(4), "big")
    try:
        while True:
            with contextlib.suppress(Exception):  # noted in case()
                seed(number)(settings(settings.get_profile("fuzz"))(given(data=st.data())(case)))()
            number += 1
    except _TimeIsUp:
        pass
    label = "[" + "-".join(map(str, params.values())) + "]" if params else ""
    results[f"{check.__module__.rpartition('.')[2]}::{check.__name__}{label}"] = {
        "cases": cases,
        "findings": list(findings.values()),
    }
    assert not findings, "\n\n".join(findings.values())


def _place(error: BaseException) -> str:
    """Where an error comes from: errors of one place are one finding."""
    while error.__cause__ is not None:
        error = error.__cause__
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} {Path(last.filename).name}:{last.lineno}"


def _describe(error: BaseException) -> str:
    return f"{_place(error)}: {' '.join(str(error).split())[:600]}"


def accepted(call: Callable[[], Any], names: Iterable[str]) -> Any:
    """What ``call`` returns, or None where it refuses its arguments and names one of them."""
    try:
        return call()
    except (ValueError, TypeError) as error:
        # Of an error's subclasses only the package's own are meant: UnicodeDecodeError names nothing.
        if not any(re.search(rf"(?<![A-Za-z_]){re.escape(name)}(?![A-Za-z_])", str(error)) for name in names):
            raise AssertionError(f"refused, but names none of {', '.join(names)}: {error!r}") from error
        return None
