"""Reading a recipe: YAML, ``_base_``, overrides, and every key checked before anything is built."""

import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml

from ..cli import UserError, did_you_mean
from .schema import Recipe

RECIPES = Path(__file__).parents[2] / "configs" / "classification"

# YAML also raises ValueError, for a date such as 2026-99-99, and runs out of stack in deep nesting.
NO_YAML = (yaml.YAMLError, ValueError, RecursionError)

# Far beyond any recipe; by aliases a few lines of YAML can be endless, or longer than memory.
_DEPTH, _VALUES = 50, 100_000

# What may differ between a run and its resumption: nothing that changes the weights.
FREE_KEYS = ("data.workers", "checkpoint.every_epochs", "checkpoint.every_updates", "checkpoint.keep", "tensorboard")


def load_recipe(source: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a YAML file, or the bundled one of that name, with ``key=value`` overrides applied.

    Raises:
        UserError: no such file, not YAML, or a key or value that is not allowed.
    """
    path = find_recipe(source)
    tree = _read_yaml(path)
    base = tree.pop("_base_", None)
    if base is not None:
        if not isinstance(base, str):
            raise UserError(f"{path}: _base_ must be the name of one file, not {base!r}")
        parent = _read_yaml(path.parent / base)
        if "_base_" in parent:
            raise UserError(f"{path}: its base {base} has a _base_ of its own; one level is allowed")
        tree = _merged(parent, tree)
    for override in overrides:
        tree = _merged(tree, _parse_override(override))
    recipe = _build(Recipe, tree, "", str(path))
    _check_across_keys(recipe, str(path))
    return recipe


def find_recipe(source: str | Path) -> Path:
    """The file itself, or the bundled recipe of that file name; raises UserError when there is neither."""
    path = Path(source)
    if path.is_file():
        return path
    bundled = RECIPES / f"{path.name.removesuffix('.yaml')}.yaml"
    if bundled.is_file():
        return bundled
    known = sorted(p.stem for p in RECIPES.glob("[!_]*.yaml"))
    raise UserError(f"no recipe {str(source)!r}: neither a file nor a bundled one{did_you_mean(path.stem, known)}")


def as_tree(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain nested dictionaries and lists, as YAML and JSON hold them."""
    return _plain(dataclasses.asdict(recipe))


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"optimizer.lr": ...}`` of a nested dictionary."""
    out = {}
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            out |= flat(value, f"{prefix}{name}.")
        else:
            out[f"{prefix}{name}"] = value
    return out


def differing_keys(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Keys in which two recipes (as trees) differ so that their runs would."""
    a, b = flat(old), flat(new)
    return [name for name in sorted(a.keys() | b.keys()) if name not in FREE_KEYS and a.get(name) != b.get(name)]


def describe_keys(cls: type = Recipe, prefix: str = "") -> Iterator[str]:
    """One line per key: name, type, default, meaning; for ``--help``."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            yield from describe_keys(hint, f"{field.name}.")
            continue
        given = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        default = field.default if field.default is not dataclasses.MISSING else {}
        shown = yaml.safe_dump(_plain(default), default_flow_style=True).split("\n")[0] if given else "required"
        yield f"  {prefix + field.name:28} {field.metadata['doc']} ({shown})"


def parse_yaml(text: str) -> Any:
    """What ``yaml.safe_load`` gives, of an extent that can be walked.

    Raises:
        yaml.YAMLError, ValueError, RecursionError: ``NO_YAML``.
    """
    tree = yaml.safe_load(text)
    level, count = [tree], 0
    for _ in range(_DEPTH):
        level = [value for value in level if isinstance(value, (dict, list, tuple, set))]
        if not level:
            return tree
        count += sum(map(len, level))
        if count > _VALUES:
            break
        level = [item for value in level for item in (value.values() if isinstance(value, dict) else value)]
    raise yaml.YAMLError(f"nested more than {_DEPTH} deep, or of more than {_VALUES} values, with its aliases")


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the recipe {path}: {error}") from error
    except NO_YAML as error:
        raise UserError(f"{path} is not YAML: {error}") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path} holds no keys; a recipe needs at least model.name and data.source")
    return tree


def _parse_override(text: str) -> dict[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise UserError(f"--set {text!r}: write it as key=value, as optimizer.lr=0.001")
    try:
        tree = parse_yaml(value)
    except NO_YAML as error:
        raise UserError(f"--set {text!r}: the value is not YAML") from error
    parts = name.strip().split(".")
    if len(parts) > _DEPTH:
        raise UserError(f"--set {text[:50]!r}…: no key has {len(parts)} parts")
    for part in reversed(parts):
        tree = {part: tree}
    return tree


def _merged(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    out = dict(base)
    for name, value in top.items():
        both = isinstance(value, Mapping) and isinstance(out.get(name), Mapping)
        out[name] = _merged(out[name], value) if both else value
    return out


def _build(cls: type, tree: Any, path: str, source: str) -> Any:
    if not isinstance(tree, Mapping):
        raise UserError(f"{source}: {path.rstrip('.') or 'recipe'} must be a set of keys, not {tree!r}")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for name in tree:
        if name not in fields:
            raise UserError(f"{source}: unknown key {path}{name}{did_you_mean(str(name), fields)}")
    hints = typing.get_type_hints(cls)
    values = {}
    for name, field in fields.items():
        where = f"{source}: {path}{name}"
        if dataclasses.is_dataclass(hints[name]):
            values[name] = _build(hints[name], tree.get(name, {}), f"{path}{name}.", source)
        elif name in tree:
            values[name] = _convert(tree[name], hints[name], where)
            _check_range(values[name], field.metadata, where)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise UserError(f"{where} is missing: {field.metadata['doc']}")
    return cls(**values)


def _convert(value: Any, hint: Any, where: str) -> Any:
    """``value`` as the type ``hint``; YAML reads 1e-3 as a string, which is taken as the number it is."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        for option in args:
            try:
                return None if option is type(None) and value is None else _convert(value, option, where)
            except UserError:
                continue
    elif origin is Literal:
        if value in args:
            return value
        near = did_you_mean(str(value), args)
        raise UserError(f"{where} is {value!r}; one of {', '.join(args)} is needed{near}")
    elif origin is tuple and isinstance(value, (list, tuple)):
        count = len(value) if args[-1] is Ellipsis else len(args)
        if len(value) == count:
            return tuple(_convert(item, args[0], where) for item in value)
    elif origin is dict and isinstance(value, Mapping):
        return dict(value)
    elif hint is float and not isinstance(value, bool) and isinstance(value, (int, float, str)):
        try:
            return float(value)
        except (ValueError, OverflowError):
            pass
    elif (hint is int and type(value) is int and abs(value) < 2**63) or (hint in (str, bool) and type(value) is hint):
        return value
    raise UserError(f"{where} is {value!r}; {_type_name(hint)} is needed")


def _type_name(hint: Any) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return " or ".join("null" if option is type(None) else _type_name(option) for option in args)
    if origin is tuple:
        count = "some" if args[-1] is Ellipsis else str(len(args))
        return f"a list of {count} numbers"
    names = {float: "a number", int: "a whole number", bool: "true or false", str: "a text"}
    return names.get(hint, "a set of keys")


def _check_range(value: Any, metadata: Mapping[str, Any], where: str) -> None:
    low, high = metadata["low"], metadata["high"]
    for number in value if isinstance(value, tuple) else (value,):
        if not isinstance(number, (int, float)) or isinstance(number, bool):
            continue
        # The comparison is written so that NaN fails it too.
        if not ((low is None or number >= low) and (high is None or number <= high)) or abs(number) == float("inf"):
            limits = f"at least {low:g}" if high is None else f"between {low:g} and {high:g}" if low is not None else ""
            raise UserError(f"{where} is {number:g}; it must be {limits or 'finite'}")


def _check_across_keys(recipe: Recipe, source: str) -> None:
    for name in ("scale", "ratio"):
        low, high = getattr(recipe.data, name)
        if low > high:
            raise UserError(f"{source}: data.{name} is [{low:g}, {high:g}]; the smaller number comes first")
    for name in ("mean", "std"):
        values = getattr(recipe.data, name)
        if values is not None and len(values) not in (1, 3):
            raise UserError(f"{source}: data.{name} has {len(values)} numbers; 1 or 3 are needed, one per channel")
    if (recipe.data.mixup or recipe.data.cutmix) and recipe.batch_size % 2:
        raise UserError(f"{source}: batch_size is {recipe.batch_size}; Mixup and CutMix need an even one")
    if recipe.scheduler.warmup_epochs >= recipe.epochs:
        raise UserError(
            f"{source}: scheduler.warmup_epochs is {recipe.scheduler.warmup_epochs:g}; fewer than epochs "
            f"({recipe.epochs}) are needed"
        )


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
