"""Importing what an extra brings, with one line instead of a traceback where it is missing."""

import importlib
from types import ModuleType

from ..cli import UserError


def import_extra(module: str, package: str | None = None, extra: str = "train") -> ModuleType:
    """Imports ``module`` of the package ``package`` (its first part by default), which ``extra`` installs.

    Raises:
        UserError: the package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        name = package or module.split(".")[0]
        raise UserError(f"{name} is not installed; pip install 'attnzoo[{extra}]'") from error
