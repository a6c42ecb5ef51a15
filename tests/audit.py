"""Checks the packages of pylock.dev.toml for known vulnerabilities; ``make audit`` runs it.

Exit status: 0 none, 1 some, 2 where the advisories cannot be had, be it for one package: no answer is not a clean one.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def locked(lock: Path) -> list[str]:
    """``name==version`` of the packages of a lock file, without the project itself."""
    packages = tomllib.loads(lock.read_text(encoding="utf-8"))["packages"]
    return sorted(f"{package['name']}=={package['version']}" for package in packages if "version" in package)


def verdict(status: int, answer: str, expected: int) -> tuple[int, str]:
    """Exit status and one line a finding, of pip-audit's exit status and JSON."""
    try:
        rows = json.loads(answer)["dependencies"]
    except (ValueError, KeyError, TypeError):
        return 2, f"make audit: no advisories: pip-audit ended with status {status}; is the advisory service reachable?"
    unknown = [row["name"] for row in rows if "skip_reason" in row]
    if unknown or len(rows) < expected:
        known = len(rows) - len(unknown)
        return 2, f"make audit: the advisory service knows {known} of {expected} packages: no verdict"
    lines = [f"{row['name']} {row['version']}: {found['id']}" for row in rows for found in row["vulns"]]
    if lines:
        return 1, "\n".join(lines)
    return 0, f"make audit: {len(rows)} packages, no known vulnerability"


def main() -> int:
    packages = locked(ROOT / "pylock.dev.toml")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "requirements.txt"
        file.write_text("\n".join(packages) + "\n", encoding="utf-8")
        command = [sys.executable, "-m", "pip_audit", "--requirement", str(file), "--no-deps", "--disable-pip"]
        command += ["--format", "json", "--progress-spinner", "off", "--timeout", "15", *sys.argv[1:]]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
    status, text = verdict(run.returncode, run.stdout, len(packages))
    (sys.stderr if status == 2 else sys.stdout).write(text + "\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
