"""Writes compile_commands.json, by which editors (clangd and others) know how each source is compiled.

    python tools/compile_commands.py

They are the commands of the build, with the settings of the environment; nothing is compiled. CUDA sources
are in it where nvcc is found.
"""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import native_build

ROOT = Path(__file__).resolve().parent.parent


def entries(settings: native_build.Settings) -> list[dict[str, str]]:
    """One entry for each source."""
    compiler = [part for part in settings.compiler if Path(part).name != "ccache"]
    found = []
    for source in native_build.sources(settings):
        if source.suffix == ".cu":
            command = native_build.cuda_command(settings)
        else:
            command = [*compiler, *native_build.compile_flags(settings, source)]
        command = [*command, "-c", source.as_posix()]
        entry = {"directory": str(settings.root), "file": source.as_posix()}
        found.append(entry | {"command": shlex.join(command)})
    return found


def main() -> int:
    """The command; its status."""
    try:
        settings = native_build.Settings.from_environment(ROOT, version="0")
        made = entries(settings)
    except native_build.BuildError as error:
        sys.exit(f"toykern: {error}")
    path = ROOT / "compile_commands.json"
    path.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    print(f"{path.name}: {len(made)} sources")
    return 0


if __name__ == "__main__":
    sys.exit(main())
