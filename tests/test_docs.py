"""What the documents name exists, and what exists is named in the document where a person would look for it."""

import argparse
import re
import shlex
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from moe_core.__main__ import parser
from moe_core.commands.sweep import plan_of
from moe_core.commands.talk import COMMANDS
from moe_core.commands.train import settings_of
from moe_core.schema import Knobs

ROOT = Path(__file__).parents[1]
DOCUMENTS = {
    path: path.read_text()
    for path in [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
}
# What was measured or decided on a day names what there was on that day.
HISTORY = {ROOT / "CHANGELOG.md", ROOT / "docs" / "decisions.md", ROOT / "docs" / "log.md"}
ALL = "\n".join(DOCUMENTS.values())
README, GUIDE, CLI, EXTENDING = (
    DOCUMENTS[ROOT / name] for name in ("README.md", "docs/guide.md", "docs/cli.md", "docs/extending.md")
)


def subparsers() -> dict[str, argparse.ArgumentParser]:
    """Each command's own parser, by its name."""
    (commands,) = (action for action in parser()._actions if isinstance(action, argparse._SubParsersAction))
    return dict(commands.choices)


def flags_of(command: argparse.ArgumentParser) -> set[str]:
    """The flags that --help lists."""
    return {
        flag
        for action in command._actions
        if action.help != argparse.SUPPRESS
        for flag in action.option_strings
        if flag.startswith("--")
    }


def shown_commands() -> list[str]:
    """Every command line that a document shows, in a block or within a sentence. COMMAND stands for any of them."""
    blocks = re.findall(r"^python -m moe_core (.*)$", ALL, re.MULTILINE)
    sentences = [" ".join(words.split()) for words in re.findall(r"`python -m moe_core ([^`]+)`", ALL)]
    return [words for words in blocks + sentences if words != "COMMAND"]


def test_the_readme_is_a_door() -> None:
    assert len(README.splitlines()) <= 120
    assert re.search(r"^!\[.+\]\(docs/screens/.+\.png\)$", README, re.MULTILINE)
    assert "\nmake run " in README
    assert "\nmake test " in README
    assert "pip install '.[all]'" in README
    for page in (ROOT / "docs").glob("*.md"):
        assert f"docs/{page.name}" in README, f"README does not say where docs/{page.name} is"


def test_every_make_target_is_documented_and_every_one_shown_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"^\| `make ([a-z]+)` \|", EXTENDING, re.MULTILINE)) == targets
    assert set(re.findall(r"(?:^|`)make ([a-z]+)", ALL, re.MULTILINE)) == targets


def test_every_command_has_a_line_to_copy_and_every_command_shown_exists() -> None:
    assert set(re.findall(r"^python -m moe_core ([a-z-]+)", CLI, re.MULTILINE)) == subparsers().keys()
    assert {words.split()[0] for words in shown_commands()} == subparsers().keys()


@pytest.mark.parametrize("line", shown_commands())
def test_every_command_line_shown_is_one(line: str) -> None:
    arguments = parser().parse_args(shlex.split(line, comments=True))
    if arguments.name in ("train", "sweep") and not arguments.resume:
        {"train": settings_of, "sweep": plan_of}[arguments.name](arguments)  # ValueError for what cannot be trained


def test_every_flag_is_in_the_page_of_the_command_line() -> None:
    """But the knobs: they are in the reference, and the page says so."""
    knobs = {"--" + f.name.replace("_", "-") for f in fields(Knobs)}
    named = set(re.findall(r"--[a-z][a-z-]*", CLI))
    for name, command in subparsers().items():
        missing = flags_of(command) - knobs - named
        assert not missing, f"docs/cli.md does not name {sorted(missing)} of {name}"


def test_every_flag_that_a_sentence_names_exists() -> None:
    ours = {flag for command in subparsers().values() for flag in flags_of(command)}
    sources = [*(ROOT / "benchmarks").glob("*.py"), ROOT / "tests" / "browser" / "screens.py"]
    others = {flag for path in sources for flag in re.findall(r'add_argument\(\s*"(--[a-z-]+)"', path.read_text())}
    for path in DOCUMENTS.keys() - HISTORY:
        for span in re.findall(r"`([^`\n]+)`", DOCUMENTS[path]):
            for flag in re.findall(r"(?<![\w-])--[a-zA-Z][\w.-]*", span):
                assert flag in ours | others or flag.startswith("--server."), f"{path.name}: {flag} is no flag"


def test_every_event_of_the_json_output_is_documented_and_there_is_no_other() -> None:
    sources = (ROOT / "moe_core").rglob("*.py")
    printed = {name for path in sources for name in re.findall(r'"event": "([a-z]+)"', path.read_text())}
    printed |= COMMANDS.keys() | {"size"}  # named by variables
    table = CLI[CLI.index("| event |") :].splitlines()
    rows = [line.split("|")[1] for line in table[2:] if line.startswith("|")]
    assert {name for row in rows for name in re.findall(r"`([a-z]+)`", row)} == printed


def test_every_variable_of_the_environment_is_documented() -> None:
    read = {
        name
        for path in [ROOT / "app.py", *(ROOT / "moe_core").rglob("*.py")]
        for name in re.findall(r"MOE_[A-Z]+", path.read_text())
    }
    assert read == set(re.findall(r"MOE_[A-Z]+", ALL))


def test_the_reference_says_what_the_schema_declares_and_the_lessons_what_the_page_teaches() -> None:
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        from make_reference import lessons, reference
    finally:
        sys.path.pop(0)
    for name, text in (("reference", reference()), ("lessons", lessons())):
        written = (ROOT / "docs" / f"{name}.md").read_text()
        assert written == text, f"docs/{name}.md is old: run python docs/make_reference.py"


def test_every_page_is_named_where_a_person_looks_for_it() -> None:
    titles = re.findall(r'st\.Page\(.*title="(\w+)"', (ROOT / "moe_core" / "dashboard" / "main.py").read_text())
    pages = [path.name for path in (ROOT / "pages").glob("*.py")]
    assert len(titles) == len(pages) > 0
    for title in titles:
        assert re.search(rf"^- \*{title}\*: .*\?", README, re.MULTILINE), f"README does not say what {title} answers"
        assert f"\n**{title}**: " in GUIDE, f"docs/guide.md has no paragraph on {title}"
    (row,) = (line for line in EXTENDING.splitlines() if line.startswith("| pages/ |"))
    for page in pages:
        assert page in row, f"docs/extending.md does not name pages/{page}"


def test_the_tree_names_every_part() -> None:
    tree = EXTENDING[EXTENDING.index("| path |") : EXTENDING.index("## Know what may import what")]
    parts = [path for path in (ROOT / "moe_core").iterdir() if path.suffix == ".py" or any(path.glob("*.py"))]
    assert parts
    for path in parts:
        if path.name != "__init__.py":
            name = f"moe_core/{path.name}" + "/" * path.is_dir()
            assert name in tree, f"docs/extending.md does not say what {name} is"


@pytest.mark.parametrize("path", sorted(DOCUMENTS.keys() - HISTORY), ids=lambda path: path.name)
def test_every_file_that_a_document_names_is_there(path: Path) -> None:
    for name in re.findall(r"(?<![\w/.-])[a-z_]+/[\w/.-]*\.(?:py|css|js|md|json)\b", DOCUMENTS[path]):
        places = (ROOT / name, ROOT / "moe_core" / name, ROOT / "moe_core" / "dashboard" / name, path.parent / name)
        assert any(place.exists() for place in places), f"{path.name} names {name}"


def test_what_a_recipe_names_is_where_it_says() -> None:
    """Names in code type, followed by "in" and a file."""
    named = re.findall(r"`([\w.]+)`(?: or None)? in ((?:moe_core|tests)/[\w/]+\.py)", EXTENDING)
    assert len(named) >= 8
    for name, file in named:
        last = name.rpartition(".")[2]
        assert re.search(rf"^\s*(def |class )?{last}\b", (ROOT / file).read_text(), re.MULTILINE), f"{name} in {file}"


def anchors(text: str) -> set[str]:
    """What a link may name behind #: each heading in small letters, without signs, with dashes for spaces."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_link_leads_somewhere() -> None:
    for document, text in DOCUMENTS.items():
        for file, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", text):
            target = document.parent / file if file else document
            assert target.exists(), f"{document.name} links to {file}, which is not there"
            assert not anchor or anchor in anchors(target.read_text()), f"{document.name}: no heading {file}#{anchor}"


def test_nothing_is_said_twice() -> None:
    """No sentence and no row of a table stands in two documents, or twice in one."""
    seen: dict[str, str] = {}
    for path in sorted(DOCUMENTS.keys() - HISTORY):
        if path.name == "reference.md":
            continue
        for paragraph in re.split(r"\n\s*\n|\n(?=[|#-])", DOCUMENTS[path]):
            for sentence in re.split(r"(?<=[.:?])\s+", " ".join(paragraph.split())):
                if len(sentence) > 45 and not sentence.startswith("|--"):
                    assert sentence not in seen, f"{path.name} says again what {seen[sentence]} says: {sentence}"
                    seen[sentence] = path.name


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
