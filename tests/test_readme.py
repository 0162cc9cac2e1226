"""What README.md and docs/ tell a reader to type works: Python as it stands, commands, files named."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pytest
import torch

from bench.table import BEGIN, END
from toykern.cli.command_line import parser

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [README, *DOCS]

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def fenced(page: Path, language: str) -> list[str]:
    """The blocks of code of one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


def commands(page: Path) -> Iterator[list[str]]:
    """The commands of its shell blocks and of its `inline code`, as words."""
    text = page.read_text(encoding="utf-8")
    lines = [line for block in fenced(page, "sh") for line in block.splitlines()]
    prose = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    lines += [
        code for code in re.findall(r"`([^`]+)`", prose) if re.match(r"(make|toykern|pip|python) ", code)
    ]
    for line in lines:
        words = shlex.split(line, comments=True)
        while words and re.match(r"[A-Z_]+=", words[0]):  # environment
            words = words[1:]
        if words:
            yield words


@pytest.fixture
def sandbox(tmp_path, monkeypatch):
    """An empty directory to run snippets in, and figures that are closed afterwards."""
    monkeypatch.chdir(tmp_path)
    matplotlib.use("Agg")
    torch.set_num_threads(1)
    yield tmp_path
    plt.close("all")


INTEROP = {"datasets": "devinterp", "devinterp": "devinterp", "sae_lens": "sae_lens"}
"""What blocks may import that the tests do not install, and the package that it comes with."""


def foreign(block: str) -> set[str]:
    """The packages of `INTEROP` that a block is about."""
    imported = re.findall(r"^(?:from|import) (\w+)", block, re.M)
    return {INTEROP[name] for name in imported if name in INTEROP}


def run_all(blocks: list[str], where: str, about: str = "") -> dict[str, object]:
    """The names that the blocks leave behind, run one after another; of those about other packages the ones
    about this one."""
    names: dict[str, object] = {}
    for number, block in enumerate(blocks):
        if foreign(block) - {about}:
            continue
        exec(compile(block, f"{where}, block {number + 1}", "exec"), names)
    return names


def test_readme_snippets_run_as_they_stand(sandbox, capsys):
    blocks = fenced(README, "python")
    assert len([line for line in blocks[0].splitlines() if line]) <= 10
    run_all(blocks, README.name)
    assert (sandbox / "pentagon.png").stat().st_size > 1000
    # What the first block prints is what its comment says: a pentagon where features are rare.
    rows = re.findall(r"\[([^\[\]]+)\]", capsys.readouterr().out)
    rarest = [float(number) for number in rows[-1].split(",")]
    assert rarest == pytest.approx([0.4] * 5, abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [page for page in DOCS if fenced(page, "python")], ids=lambda page: page.name
)
def test_snippets_of_the_docs_run_on_a_small_budget(page, sandbox):
    small = {
        r"\b(steps|stop_at)=[\d_]+": r"\1=20",
        r"log_spaced_steps\([\d_]+": "log_spaced_steps(20",
        r"\bsamples=[\d_]+": "samples=1000",
        r"\brange\((40|1000|50|10|4)\)": "range(2)",
        r"\brange\(0, 2_001, 10\)": "range(0, 21, 10)",
        r"\bsnapshot=2_000": "snapshot=20",
        r"\bWarmupCosine\(250\)": "WarmupCosine(2)",
        r"\brerun\(7\)": "rerun(3)",
        r"\bweight\[7\]": "weight[3]",
    }
    blocks = fenced(page, "python")
    for pattern, replacement in small.items():
        blocks = [re.sub(pattern, replacement, block) for block in blocks]
    run_all(blocks, page.name)


@pytest.mark.slow
@pytest.mark.parametrize("package", sorted(set(INTEROP.values())))
def test_models_are_handed_on(package, sandbox):
    pytest.importorskip(package)
    page = ROOT / "docs" / "handing_on.md"
    blocks = [re.sub(r"\bsteps=[\d_]+", "steps=200", block) for block in fenced(page, "python")]
    assert any(package in foreign(block) for block in blocks)
    run_all(blocks, page.name, about=package)


@each_page
def test_commands_exist(page):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for words in commands(page):
        match words:
            case ["make", *rest]:
                assert {word for word in rest if "=" not in word} <= targets, words
            case ["toykern", *rest]:
                arguments = [word for word in rest if word != "--help"]
                parser().parse_args(arguments)  # exits where the command line would refuse
            case ["python", "-m", module, *_]:
                assert find_spec(module) is not None, words
            case ["python", file, *_] if file.endswith(".py"):
                assert (ROOT / file).is_file(), words
            case ["pip", "install", *rest]:
                for extra in re.findall(r"\[(.*)\]", " ".join(rest)):
                    assert set(extra.split(",")) <= set(extras), words
            case [program, *_]:
                assert program in {"pytest", "perf", "git", "sed"}, (
                    f"{page.name}: {shlex.join(words)}: is that a command?"
                )


def test_the_two_commands_are_there():
    assert {("make", "demo"), ("make", "test")} <= {tuple(words) for words in commands(README)}


@each_page
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        if not link.startswith(("https://", "#")):
            assert (page.parent / link.partition("#")[0]).exists(), f"{page.name} points to {link}"


@each_page
def test_files_named_in_passing_exist(page):
    folders = [path for path in (ROOT / "csrc").rglob("*") if path.is_dir()]
    places = [ROOT, ROOT / "csrc", *folders, page.parent]
    for name in re.findall(
        r"`([\w/.-]+\.(?:py|inl|h|cuh|cu|cpp|toml|txt|md))`", page.read_text(encoding="utf-8")
    ):
        assert any((place / name).exists() for place in places), f"{page.name} names {name}"


def test_the_bench_can_write_its_table():
    text = README.read_text(encoding="utf-8")
    assert text.count(BEGIN) == text.count(END) == 1 and text.index(BEGIN) < text.index(END)


def test_readme_is_what_the_package_index_would_show():
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["readme"] == "README.md"


def test_papers_of_the_house_name_the_version():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    first = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert first is not None and first[1] == version
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()


def test_the_package_hands_out_its_types():
    package = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    for name in package["toykern"]:
        assert (ROOT / "toykern" / name).is_file(), f"the package has no {name}"
    assert "py.typed" in package["toykern"]
