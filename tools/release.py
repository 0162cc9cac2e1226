"""Makes what a release consists of and checks it; nothing is uploaded, tagged or pushed.

    python tools/release.py

Refused where the tree has changes, where the version is not the same everywhere it is said, or where
CHANGELOG.md does not say what is in it and when it was released. Then the sdist and the wheel of this Python
are made anew (`make_wheel.py --anew`), and `twine check` reads what an index would show of them. The wheels
of other Pythons and systems come from the workflow `wheels`.
"""

from __future__ import annotations

import datetime
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def version_of(root: Path = ROOT) -> str:
    """The version, as pyproject.toml has it."""
    told = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    return str(told["project"]["version"])


def faults(root: Path = ROOT) -> list[str]:
    """What keeps this tree from being released, a sentence each."""
    version = version_of(root)
    found = []
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        found.append(f"the version is major.minor.patch, not {version}")
    cited = re.search(r"^version: *(\S+)", (root / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    if cited is None or cited[1].strip("\"'") != version:
        found.append(
            f"CITATION.cff has version {cited[1] if cited else 'none'}, pyproject.toml has {version}"
        )
    headings = re.findall(r"^## (.+)$", (root / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    top = headings[0] if headings else ""
    dated = re.fullmatch(rf"{re.escape(version)} \((\d{{4}}-\d{{2}}-\d{{2}})\)", top)
    if dated is None:
        found.append(f"CHANGELOG.md must begin with '## {version} (YYYY-MM-DD)', not '## {top}'")
    else:
        try:
            datetime.date.fromisoformat(dated[1])
        except ValueError:
            found.append(f"CHANGELOG.md: {dated[1]} is no date")
    found += _faults_of_git(root, version)
    return found


def _faults_of_git(root: Path, version: str) -> list[str]:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain")
        tags = git("tag", "--list", f"v{version}")
    except (OSError, subprocess.CalledProcessError):
        return ["this is no git checkout"]
    found = (
        [f"files differ from the commit, or are not in it: {changed.splitlines()[0]}, …"] if changed else []
    )
    return found + ([f"there is a tag v{version} already"] if tags else [])


def main() -> int:
    """The command; its status."""
    found = faults()
    for fault in found:
        print(f"release: {fault}", file=sys.stderr)
    if found:
        return 1
    version = version_of()
    subprocess.run([sys.executable, ROOT / "tools" / "make_wheel.py", "--anew"], check=True)
    made = sorted(map(str, (ROOT / "dist").glob(f"toykern-{version}*")))
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *made], check=True)
    print(f"toykern {version}: " + ", ".join(Path(name).name for name in made) + "; nothing was uploaded")
    return 0


if __name__ == "__main__":
    sys.exit(main())
