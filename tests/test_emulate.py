"""`make emulate`: what it says where there is no emulator, and that what it runs exists."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import emulate  # noqa: E402


def test_without_an_emulator_one_line_says_so(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("TOYKERN_EMULATOR", str(tmp_path))
    for arguments, status, says in (([], 1, "impossible"), (["--if-there"], 0, "skipped")):
        assert emulate.main(arguments) == status
        said = capsys.readouterr().out
        assert said.startswith(f"emulation {says}: no emulator in the folder that TOYKERN_EMULATOR names")
        assert said.count("\n") == 1


def test_without_nvcc_one_line_says_so(monkeypatch, capsys, tmp_path):
    (tmp_path / "build.py").write_text("")
    monkeypatch.setenv("TOYKERN_EMULATOR", str(tmp_path))
    monkeypatch.setenv("CUDACXX", str(tmp_path / "no-nvcc"))
    assert emulate.main(["--if-there"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("emulation skipped: ") and "nvcc" in said and said.count("\n") == 1


def test_shares_of_the_core_have_names_of_their_own_and_files_that_exist():
    for shares in (emulate.CORE, emulate.EVERYTHING):
        assert len({share.name for share in shares}) == len(shares)
        named = [a.partition("::")[0] for share in shares for a in share.arguments if a.startswith("tests")]
        assert named and all((ROOT / name).exists() for name in named)
