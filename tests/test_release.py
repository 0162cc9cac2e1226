"""What a release is refused for, and what the papers of this checkout say of its version."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import release  # noqa: E402


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A checkout that may be released."""
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "1.2.3"\n')
    (tmp_path / "CITATION.cff").write_text("cff-version: 1.2.0\nversion: 1.2.3\n")
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## 1.2.3 (2026-01-31)\n\n## 1.2.2 (2025-12-01)\n")
    for command in (
        ["init", "-q"], ["add", "-A"],
        ["-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-q", "-m", "all"],
    ):  # fmt: skip
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    return tmp_path


def test_a_tree_that_may_be_released(tree):
    assert release.faults(tree) == []


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("CITATION.cff", "version: 1.2.2\n", "CITATION.cff has version 1.2.2, pyproject.toml has 1.2.3"),
        ("CITATION.cff", "title: none\n", "CITATION.cff has version none"),
        ("CHANGELOG.md", "## 1.2.3 (not released)\n", "must begin with '## 1.2.3 (YYYY-MM-DD)'"),
        ("CHANGELOG.md", "## 1.2.2 (2026-01-31)\n", "must begin with '## 1.2.3 (YYYY-MM-DD)'"),
        ("CHANGELOG.md", "## 1.2.3 (2026-02-31)\n", "2026-02-31 is no date"),
        ("pyproject.toml", '[project]\nversion = "1.2"\n', "the version is major.minor.patch, not 1.2"),
    ],
)
def test_papers_that_do_not_agree(tree, file, text, said):
    (tree / file).write_text(text)
    assert any(said in fault for fault in release.faults(tree))


def test_changes_and_tags(tree):
    (tree / "new.txt").write_text("new\n")
    subprocess.run(["git", "-C", str(tree), "tag", "v1.2.3"], check=True)
    said = release.faults(tree)
    assert [fault[:14] for fault in said] == ["files differ f", "there is a tag"]


def test_this_checkout_says_one_version():
    said = [fault for fault in release.faults(ROOT) if "CITATION" in fault or "major.minor" in fault]
    assert said == []
