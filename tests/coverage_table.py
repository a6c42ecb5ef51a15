"""Prints the coverage of each folder of the package, in lines and branches, from coverage.py's JSON.

``make test`` measures all tests but those marked ``compiles``; what a test starts as another process is not traced.
"""

import json
import sys
from collections import Counter
from pathlib import Path

FOLDERS = ("zoo", "layers", "kernels", "weights", "tools")


def table(report: dict) -> list[str]:
    """One line a folder and one for all."""
    sums: dict[str, Counter[str]] = {folder: Counter() for folder in (*FOLDERS, "all")}
    for name, row in report["files"].items():
        for folder in (Path(name).parts[0], "all"):
            sums[folder].update({key: value for key, value in row["summary"].items() if isinstance(value, int)})
    return [
        f"{folder + '/' if folder != 'all' else 'all':9}"
        f"{_share(total['covered_lines'], total['num_statements'])} of {total['num_statements']:6,} lines  "
        f"{_share(total['covered_branches'], total['num_branches'])} of {total['num_branches']:6,} branches"
        for folder, total in sums.items()
    ]


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:5.1f} %" if whole else "    - "


if __name__ == "__main__":
    sys.stdout.write("\n".join(table(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))) + "\n")
