"""The description of the architecture names every subpackage and every file that exists, and none that does not."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "architecture.md").read_text()
PICTURE = TEXT.split("```")[1]
SUBPACKAGES = {path.parent.name for path in (ROOT / "repo").glob("*/__init__.py")}


def test_each_subpackage_that_exists_has_one_paragraph_and_each_paragraph_is_about_one() -> None:
    described = re.findall(r"^\*\*`(.+)/`\*\*", TEXT, re.MULTILINE)
    assert sorted(described) == sorted(["alembic", *(f"repo/{name}" for name in SUBPACKAGES)])


def test_the_picture_has_each_subpackage_and_each_base_module() -> None:
    modules = {path.stem for path in (ROOT / "repo").glob("*.py")} - {"__init__"}
    drawn = set(re.findall(r"[a-z_]+", PICTURE))
    assert not (SUBPACKAGES | modules) - drawn
    in_the_text = set(re.findall(r"`(?:repo/)?([a-z_]+)\.py`", TEXT))
    assert not modules - in_the_text


def test_each_file_and_folder_that_is_named_exists() -> None:
    named = set(re.findall(r"`((?:repo|alembic)/[a-z_/.]*)`", TEXT))
    named |= {f"docs/{path}" for path in re.findall(r"\]\(([a-z-]+\.md)", TEXT)}
    assert len(named) > 30
    assert not [path for path in named if not (ROOT / path).exists()]


def test_each_subpackage_that_is_named_exists() -> None:
    bare = set(re.findall(r"`([a-z_]+)`", TEXT)) - {"repo", "holdfast", "flush_interval_s"}
    assert bare <= SUBPACKAGES


def test_the_readme_links_to_it() -> None:
    assert "(docs/architecture.md)" in (ROOT / "README.md").read_text()
