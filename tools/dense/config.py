"""From a name or path to a checked MMEngine config."""

import argparse
import importlib.util
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..cli import UserError, did_you_mean

if TYPE_CHECKING:
    from mmengine.config import Config

CONFIGS = Path(__file__).parents[2] / "configs"
SCOPES = ("mmdet", "mmseg")
_PREPROCESSORS = {"DetDataPreprocessor": "mmdet", "SegDataPreProcessor": "mmseg"}
_INSTALL = (
    "see docs/dense.md, or run 'make mm' in a checkout; "
    "attnzoo.create_detector and attnzoo.create_segmenter need neither"
)


@cache
def shipped_configs() -> dict[str, Path]:
    """The configs of this package by name: ``mmdet/FOLDER/STEM``."""
    found = {}
    for scope in SCOPES:
        for path in sorted((CONFIGS / scope).rglob("*.py")):
            name = path.relative_to(CONFIGS).with_suffix("")
            if not any(part.startswith("_") for part in name.parts):
                found[name.as_posix()] = path
    return found


def find_config(name: str) -> Path:
    """A config file by its path, by its name in this package, or by the end of one (``retinanet_nat-mini_1x``).

    Raises:
        UserError: there is none, or several shipped ones end so.
    """
    if Path(name).is_file():
        return Path(name)
    known = shipped_configs()
    wanted = name.removesuffix(".py").removeprefix("configs/")
    scope, _, rest = wanted.partition("/")
    ends = {
        each: path
        for each, path in known.items()
        if each == wanted
        or each.endswith(f"/{wanted}")
        or (scope in SCOPES and each.startswith(f"{scope}/") and each.endswith(f"/{rest}"))
    }
    if len(ends) == 1:
        return next(iter(ends.values()))
    if ends:
        raise UserError(f"'{name}' may be {' or '.join(list(ends)[:3])}; give one in full")
    near = did_you_mean(wanted, known) or did_you_mean(wanted, {each.rsplit("/", 1)[1] for each in known})
    raise UserError(f"there is no config '{name}', neither a file nor among the {len(known)} shipped ones{near}")


def require_packages(scope: str | None = None) -> None:
    """Refuse to go on without MMEngine, MMCV and the package of a scope.

    Raises:
        UserError: one is not installed.
    """
    missing = [
        name for name in ("mmengine", "mmcv", *([scope] if scope else [])) if importlib.util.find_spec(name) is None
    ]
    if missing:
        raise UserError(f"{' and '.join(missing)} not installed: {_INSTALL}")


def load_config(name: str, options: Sequence[str] = (), data_root: Path | None = None) -> "Config":
    """Read a config, apply overrides and make sure of its scope and packages.

    Args:
        name: A file, or a shipped config's name.
        options: ``key=value`` each, as MMDetection's ``--cfg-options``.
        data_root: Folder to put in place of the config's ``data_root``, wherever its paths begin with that.

    Raises:
        UserError: it cannot be found or read, or its scope or packages are not there.
    """
    path = find_config(name)
    require_packages()
    from mmengine.config import Config

    from ... import registry  # noqa: F401  operators and loaders, before anything imports mmdet

    try:
        config = Config.fromfile(path)
        if data_root is not None:
            config = _move_data(config, data_root)
        config.merge_from_dict(_parse(options))
    except UserError:
        raise
    except Exception as error:  # a config is a program: it can fail in any way
        raise UserError(f"{path} cannot be read as a config: {type(error).__name__}: {error}") from error
    if "model" not in config:
        raise UserError(f"{path} is no training config: it has no 'model'")
    config.default_scope = scope_of(config, path)
    require_packages(config.default_scope)
    return config


def scope_of(config: "Config", path: Path) -> str:
    """``"mmdet"`` or ``"mmseg"``: the config's ``default_scope``, else by its data preprocessor.

    Raises:
        UserError: it is neither.
    """
    scope = config.get("default_scope")
    if scope is None:
        preprocessor = (config.model.get("data_preprocessor") or config.get("data_preprocessor") or {}).get("type")
        scope = _PREPROCESSORS.get(str(preprocessor).rsplit(".", 1)[-1])
    if scope not in SCOPES:
        raise UserError(f"{path}: default_scope is {scope!r}; 'mmdet' or 'mmseg' works here")
    return scope


def _move_data(config: "Config", folder: Path) -> "Config":
    """Every path below the config's ``data_root`` as one below another folder."""
    from mmengine.config import Config

    old = config.get("data_root") or (config.get("train_dataloader") or {}).get("dataset", {}).get("data_root")
    if not old:
        raise UserError("--data-root needs a config with a data_root; use --cfg-options for the paths of this one")
    old = str(old).rstrip("/")

    def moved(tree: Any) -> Any:
        if isinstance(tree, dict):
            return {key: moved(value) for key, value in tree.items()}
        if isinstance(tree, (list, tuple)):
            return type(tree)(moved(value) for value in tree)
        inside = isinstance(tree, str) and (tree.rstrip("/") == old or tree.startswith(f"{old}/"))
        return f"{folder}{tree[len(old) :]}" if inside else tree

    return Config(moved(config.to_dict()), filename=config.filename)


def _parse(options: Sequence[str]) -> dict[str, Any]:
    from mmengine.config import DictAction

    if wrong := [each for each in options if "=" not in each]:
        raise UserError(f"--cfg-options takes KEY=VALUE, not '{wrong[0]}'")
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    parser.add_argument("--options", nargs="+", action=DictAction)
    return parser.parse_args(["--options", *options]).options if options else {}
