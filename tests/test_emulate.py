"""`make emulate` and `make count`: what they say without an emulator, and how instructions are told apart."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import count_instructions  # noqa: E402
import emulate  # noqa: E402


def test_without_an_emulator_one_line_says_so(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("TOYKERN_EMULATOR", str(tmp_path))
    for arguments, status, says in (([], 1, "impossible"), (["--if-there"], 0, "skipped")):
        assert emulate.main(arguments) == status
        said = capsys.readouterr().out
        assert said.startswith(f"emulation {says}: no emulator in the folder that TOYKERN_EMULATOR names")
        assert said.count("\n") == 1
    assert count_instructions.main([]) == 1
    assert "no emulator" in capsys.readouterr().out


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


def test_what_fails_no_test_of_itself_is_told_once_for_its_place(tmp_path):
    faults = tmp_path / "faults"
    assert emulate.passed_over(faults) == []
    told = [("one", "fault", 7), ("two", "note", 7), ("three", "note", 7), ("three", "note", 9)]
    told += [("four", "known", 9)]
    text = "uninitialised shared memory: a load of 4 bytes at 0x{:x}\n    kernel k\n    at a.cuh:{} in f"
    entries = [
        {"test": test, "kind": kind, "text": text.format(16 * number, line)}
        for number, (test, kind, line) in enumerate(told)
    ]
    faults.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    assert emulate.passed_over(faults) == [
        "uninitialised shared memory read at a.cuh:7, first in two",
        "uninitialised shared memory read at a.cuh:9, first in three",
        "uninitialised shared memory, passed over at a.cuh:9, first in four",
    ]


@pytest.mark.parametrize(
    ("opcode", "kind"),
    [
        ("fma.rn.ftz.f32", "multiply-add"),
        ("mad.lo.s32", "integer"),
        ("add.ftz.f32", "add, multiply"),
        ("mul.wide.u32", "integer"),
        ("setp.gt.ftz.f32", "compare, select"),
        ("setp.eq.s32", "integer"),
        ("selp.f32", "compare, select"),
        ("selp.b32", "integer"),
        ("div.rn.ftz.f32", "special"),
        ("div.u32", "integer"),
        ("sqrt.rn.ftz.f32", "special"),
        ("ld.shared.v4.f32", "shared"),
        ("ld.global.nc.f32", "global"),
        ("ld.param.u64", "parameter"),
        ("st.f32", "global"),
        ("atom.shared.add.u32", "shared"),
        ("shfl.sync.idx.b32", "exchange"),
        ("bar.warp.sync", "exchange"),
        ("vote.sync.ballot.b32", "exchange"),
        ("bra.uni", "branch, call"),
        ("mov.b64", "move"),
        ("cvt.rn.f32.u32", "convert"),
        ("lop3.b32", "integer"),
    ],
)
def test_kinds_of_instructions(opcode, kind):
    assert count_instructions.kind_of(opcode) == kind and kind in count_instructions.KINDS


def test_the_table_has_a_column_for_each_workload_and_sums_that_add_up():
    found = dict.fromkeys(count_instructions.KINDS, 10.0) | {"lanes": 65.0}
    lines = count_instructions.table([("pentagon", found), ("eighty", found)]).splitlines()
    assert lines[0].count("|") == 4 and "5 → 2, S = 0.99" in lines[0]
    cells = {line.split("|")[1].strip(): line.split("|")[2].strip() for line in lines[2:]}
    assert cells["**all of PTX**"] == "**130**" and cells["lanes at work"] == "50%"
    assert (
        cells["by hand, of machine code"] == count_instructions.BY_HAND["pentagon"]
        and cells["issue roof"] == "143"
    )
