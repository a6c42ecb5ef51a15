"""What the forms of a report were meant to reach, and whether they did."""

from collections.abc import Mapping
from typing import Any

from .report import Report

# A goal: the case, what is compared with, the figure aimed at, and the one measured.
Goal = tuple[str, str, float, float]

# On a GPU, without gradients: fused forms' share of the floor's speed, and how many times as fast as the best form of
# PyTorch's operators neighborhood attention is.
_FLOOR_SHARE = 0.6
_TIMES_BEST = 2.0
_NOT_PYTORCH = ("triton", "triton, compiled", "reference", "natten")


def verdicts(report: Report) -> str:
    """A heading and a line for each goal that the report tells about, in Markdown; those not reached say so."""
    if on_gpu(report):
        shares, ratios = floor_shares(report), [*times_best(report), *block_ratios(report)]
        lines = [
            f"- {case}: {share:.0%} of the floor's speed; {_aim(share, aim, '.0%')}" for case, _, aim, share in shares
        ]
        lines += [_line(goal) for goal in ratios]
        subject = "blocks with fused kernels" if report["setting"].get("block") else "fused kernels"
        return _section(subject, [*shares, *ratios], lines)
    mode = "compiled" if report["setting"]["compile"] else "eager"
    aims = goals(report)
    return _section(f"{mode} CPU code", aims, [_line(goal) for goal in aims])


def on_gpu(report: Report) -> bool:
    return report["setting"].get("timer") == "CUDA events"


def goals(report: Report) -> list[Goal]:
    """How many times as fast as a peer our forms are meant to be on a CPU."""
    from .layer_cases import CASES as LAYERS

    if report["subject"] == "models" or report["setting"].get("block"):
        return []
    if report["subject"] == "layers":
        return _layer_goals(report, {(case.name, case.label): {"published": case.goal} for case in LAYERS if case.goal})
    found = []
    for row in report["rows"]:
        seconds = _seconds(row)
        ours, aims = _aims(row, report["setting"])
        found += [
            (_label(row), peer, aim, seconds[peer] / seconds[ours])
            for peer, aim in aims.items()
            if {peer, ours} <= seconds.keys()
        ]
    return found


def floor_shares(report: Report) -> list[Goal]:
    """The share of the floor's speed that each fused form reaches."""
    if report["subject"] != "ops" or report["setting"]["backward"]:
        return []
    sides = [(row, side) for row in report["rows"] for side in row["sides"] if side["form"] == "triton"]
    return [(_label(row), "floor", _FLOOR_SHARE, 1 / side["floor_ratio"]) for row, side in sides]


def times_best(report: Report) -> list[Goal]:
    """How many times as fast as the best of PyTorch's operators fused neighborhood attention is."""
    if report["subject"] != "ops" or report["setting"]["backward"]:
        return []
    found = []
    for row in report["rows"]:
        seconds = _seconds(row)
        others = [form for form in seconds if form not in _NOT_PYTORCH]
        if row["op"] == "neighborhood_attention" and "triton" in seconds and others:
            best = min(others, key=seconds.__getitem__)
            found.append((_label(row), best, _TIMES_BEST, seconds[best] / seconds["triton"]))
    return found


def block_ratios(report: Report) -> list[Goal]:
    """How many times as fast as another form blocks with fused kernels are."""
    from .layer_cases import CASES as LAYERS

    if not report["setting"].get("block"):
        return []
    return _layer_goals(report, {(case.name, case.label): case.block_goals for case in LAYERS})


def _layer_goals(report: Report, aims: Mapping[tuple[str, str], Mapping[str, float]]) -> list[Goal]:
    if report["setting"]["backward"]:
        return []
    return [
        (f"{row['layer']}, {row['case']}", side["form"], aim, side["ratio"])
        for row in report["rows"]
        for side in row["sides"]
        if (aim := aims.get((row["layer"], row["case"]), {}).get(side["form"]))
    ]


def _label(row: dict[str, Any]) -> str:
    return f"{row['op']}, {row['case']}"


def _seconds(row: dict[str, Any]) -> dict[str, float]:
    return {side["form"]: side["seconds"] for side in row["sides"]}


def _aims(row: dict[str, Any], setting: dict[str, Any]) -> tuple[str, dict[str, float]]:
    """The form that is to be faster, and than which peers by what factor."""
    from .cases import CASES

    case = next((case for case in CASES if (case.op, case.label) == (row["op"], row["case"])), None)
    if case is None:
        return "torch", {}
    if setting["compile"]:
        return "torch, compiled", {} if setting["backward"] else case.compiled_goals
    return "torch", case.backward_goals if setting["backward"] else case.goals


def _line(goal: Goal) -> str:
    case, peer, aim, measured = goal
    # Not rounded up to a goal that it is below.
    digits = 4 if measured < aim <= float(f"{measured:.3g}") else 3
    return f"- {case}: {measured:.{digits}g} times as fast as `{peer}`; {_aim(measured, aim, 'g')}"


def _aim(measured: float, aim: float, form: str) -> str:
    return f"at least {aim:{form}} is the goal: {'reached' if measured >= aim else '**not reached**'}."


def _section(subject: str, aims: list[Goal], lines: list[str]) -> str:
    if not aims:
        return ""
    reached = sum(measured >= aim for *_, aim, measured in aims)
    return f"#### Goals for {subject}: {reached} of {len(aims)} reached in this run\n\n" + "\n".join(lines) + "\n"
