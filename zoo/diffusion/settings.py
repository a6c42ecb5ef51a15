"""What to compute in the patched blocks, and when: plain names, checked once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from ...kernels._checks import shown

AgentSource = Literal["merge", "grid"]
Late = Literal["none", "tome", "todo"]


@dataclass(frozen=True)
class Stage:
    """What a patched block does during one part of the run: its own softmax attention, or something cheaper."""

    kind: Literal["softmax", "agents", "tome", "todo"] = "softmax"
    cell: tuple[int, int] = (4, 4)
    merge_ratio: float = 0.0
    agent_source: AgentSource = "merge"
    agent_ratio: float = 0.95
    agents: int | None = None
    score_power: float = 0.3
    shortcut: float = 0.075
    random: bool = False
    min_tokens: int = 0


SOFTMAX = Stage()


@dataclass(frozen=True)
class AgentSettings:
    """Settings of :func:`apply_agent_attention`; docs/diffusion.md says what each costs and changes.

    Args:
        agent_source: ``"merge"``: agents are tokens merged by similarity, as published; ``"grid"``: means of the cells,
            without sorting.
        cell: rows and columns of a cell, or one number for both; one agent or destination of merging a cell.
        agents: number of agents, in place of one a cell.
        agent_ratio: share of the tokens merged to make the agents (``merge`` without ``agents``).
        merge_ratio: share of the tokens merged before the attention; 0 merges none. At most one token a cell is left,
            so that more than ``1 - 1 / (rows * columns)`` has no further effect.
        score_power: the queries' scores of the agents are scaled by ``d ** (-score_power / 2)``.
        shortcut: share of the values added to the output.
        start: noise fraction where agents begin; 0 is pure noise, 1 the finished image.
        stop: noise fraction where they end.
        late: after that: ``"none"`` (softmax), ``"tome"`` (softmax over merged tokens) or ``"todo"`` (softmax with keys
            and values subsampled).
        late_cell: cell of the late part.
        late_ratio: share of the tokens that ``"tome"`` merges.
        max_downsample: patch blocks whose tokens are at most so many times coarser than the finest grid.
        levels: downsampling factors to patch, such as ``(1, 2)``, in place of ``max_downsample``.
        min_tokens: leave a patched block alone at sizes where it has fewer tokens.
        random: draw the destination within each cell (from ``seed`` and the timestep) rather than take its first token.
        seed: of ``random``.

    Raises:
        ValueError: a value out of range; the message names it and what would work.
    """

    agent_source: AgentSource = "merge"
    cell: int | tuple[int, int] = 4
    agents: int | None = None
    agent_ratio: float = 0.95
    merge_ratio: float = 0.4
    score_power: float = 0.3
    shortcut: float = 0.075
    start: float = 0.0
    stop: float = 0.4
    late: Late = "tome"
    late_cell: int | tuple[int, int] = 2
    late_ratio: float = 0.4
    max_downsample: int = 1
    levels: tuple[int, ...] | None = None
    min_tokens: int = 0
    random: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        _check_choice("agent_source", self.agent_source, ("merge", "grid"))
        _check_choice("late", self.late, ("none", "tome", "todo"))
        for name in ("agent_ratio", "merge_ratio", "late_ratio"):
            _check_range(name, getattr(self, name), below=1.0)
        for name in ("start", "stop"):
            _check_range(name, getattr(self, name), up_to=1.0)
        if self.stop < self.start:
            raise ValueError(
                f"stop is {self.stop!r}, before start {self.start!r}; 0 is pure noise, 1 the finished image"
            )
        for name in ("score_power", "shortcut"):
            _check_range(name, getattr(self, name))
        for name in ("cell", "late_cell"):
            object.__setattr__(self, name, _checked_cell(name, getattr(self, name)))
        for name, low in (("agents", 1), ("max_downsample", 1), ("min_tokens", 0), ("seed", 0)):
            if getattr(self, name) is not None:
                _check_whole(name, getattr(self, name), low)
        if self.levels is not None:
            object.__setattr__(self, "levels", _checked_levels(self.levels))

    def covers(self, downsample: int) -> bool:
        """Whether blocks of this downsampling factor are to be patched."""
        return downsample <= self.max_downsample if self.levels is None else downsample in self.levels

    @property
    def early_stage(self) -> Stage:
        """What is computed from ``start`` to ``stop``."""
        names = {field.name for field in fields(Stage)} - {"kind"}
        return Stage("agents", **{name: getattr(self, name) for name in names})

    @property
    def late_stage(self) -> Stage:
        """What is computed after ``stop``."""
        if self.late == "none":
            return SOFTMAX
        return replace(self.early_stage, kind=self.late, cell=self.late_cell, merge_ratio=self.late_ratio)

    def stage_at(self, noise: float) -> Stage:
        """What is computed at a noise fraction (0: pure noise, 1: the finished image)."""
        if noise < self.start:
            return SOFTMAX
        return self.early_stage if noise <= self.stop else self.late_stage

    @property
    def scheduled(self) -> bool:
        """Whether what is computed changes during a run."""
        return self.start > 0 or self.stop < 1


def _check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {shown(value)}; it is one of {', '.join(map(repr, choices))}")


def _check_range(name: str, value: object, below: float | None = None, up_to: float | None = None) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if number and 0 <= value < float("inf") and (below is None or value < below) and (up_to is None or value <= up_to):
        return
    bound = f"from 0 to below {below:g}" if below is not None else f"from 0 to {up_to:g}" if up_to else "of at least 0"
    raise ValueError(f"{name} is {shown(value)}; it is a number {bound}")


def _check_whole(name: str, value: object, low: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise ValueError(f"{name} is {shown(value)}; it is a whole number of at least {low}")


def _checked_cell(name: str, value: object) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else value
    if not isinstance(pair, Sequence) or len(pair) != 2 or any(not isinstance(n, int) or n < 1 for n in pair):
        raise ValueError(f"{name} is {shown(value)}; it is a whole number of at least 1, or two (rows, columns)")
    if pair[0] * pair[1] < 2:
        raise ValueError(f"{name} is {shown(value)}; a cell of one token saves nothing, 2 or 4 would")
    return tuple(pair)


def _checked_levels(value: object) -> tuple[int, ...]:
    levels = (value,) if isinstance(value, int) else value
    if not isinstance(levels, Sequence) or not levels or any(not isinstance(n, int) or n < 1 for n in levels):
        raise ValueError(f"levels is {shown(value)}; it holds downsampling factors, such as (1, 2)")
    return tuple(levels)


PRESETS: dict[str, AgentSettings] = {
    # AgentSD's README: agents in the first 40 % of the steps, token merging afterwards.
    "paper": AgentSettings(random=True),
    "hires": AgentSettings(max_downsample=8, min_tokens=9216),
    "cpu": AgentSettings(agent_source="grid", merge_ratio=0.0, late="todo", max_downsample=2, min_tokens=1024),
}


def resolve_settings(preset: str = "paper", **settings: Any) -> AgentSettings:
    """A preset with some of its settings replaced.

    Args:
        preset: ``"paper"``, ``"hires"`` or ``"cpu"``.
        **settings: fields of :class:`AgentSettings`.

    Raises:
        TypeError: no such setting.
        ValueError: no such preset, or a value out of range.
    """
    _check_choice("preset", preset, tuple(PRESETS))
    known = [field.name for field in fields(AgentSettings)]
    for name in settings:
        if name not in known:
            raise TypeError(f"there is no setting {name!r}; settings: {', '.join(known)}")
    return replace(PRESETS[preset], **settings)
