"""What the documents name exists, and what exists is named in the documents."""

import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

from moe_core.schema import Config, Knobs

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
DOCUMENTS = {
    path: path.read_text()
    for path in [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
}
ALL = "\n".join(DOCUMENTS.values())


def targets() -> set[str]:
    return set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def commands() -> set[str]:
    """The subcommands that --help lists."""
    told = subprocess.run(
        [sys.executable, "-m", "moe_core", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    listed = re.search(r"\{([a-z,]+)\}", told)
    assert listed, told
    return set(listed.group(1).split(","))


def test_every_make_target_is_in_the_readme_and_every_one_shown_exists() -> None:
    assert targets() == set(re.findall(r"(?:^|`)make ([a-z]+)", ALL, re.MULTILINE))


def test_every_command_is_documented_and_every_command_shown_exists() -> None:
    shown = set(re.findall(r"python -m moe_core ([a-z]+)", ALL))
    assert shown == commands()


def test_every_flag_shown_is_a_flag() -> None:
    settings = {f.name.replace("_", "-") for settings in (Config, Knobs) for f in fields(settings)}
    lines = [line for line in ALL.splitlines() if "python -m moe_core train" in line]
    assert lines
    for flag in re.findall(r"--([a-z-]+)", " ".join(lines)):
        assert flag in settings | {"json", "runs", "resume", "script"}, f"--{flag} is shown and is no flag of train"


def test_the_reference_says_what_the_schema_declares() -> None:
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        from make_reference import reference
    finally:
        sys.path.pop(0)
    written = (ROOT / "docs" / "reference.md").read_text()
    assert written == reference(), "docs/reference.md is old: run python docs/make_reference.py"


def test_every_page_is_named_in_the_readme() -> None:
    pages = sorted((ROOT / "pages").glob("*.py"))
    assert pages
    for page in pages:
        assert f"pages/{page.name}" in README, f"README does not name pages/{page.name}"


def test_every_link_to_a_file_leads_somewhere() -> None:
    for document, text in DOCUMENTS.items():
        for link in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (document.parent / link).exists(), f"{document.name} links to {link}, which is not there"


def test_nothing_names_a_path_of_one_machine() -> None:
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    for name in tracked:
        path = ROOT / name
        if path.suffix in {".py", ".md", ".toml", ".js", ".css", ".txt"} and path != Path(__file__):
            text = path.read_text()
            for bad in ("/work/", "/root/", "/home/"):
                assert bad not in text, f"{name} names {bad}"
