"""The documents keep what they promise: each command in them is run here, or by the end-to-end test that is named."""

import ast
import importlib
import inspect
import itertools
import re
import shlex
import subprocess
import tomllib
import typing
from pathlib import Path

import msgspec
import pytest

from barnraise import cli
from barnraise.cli import reference
from barnraise.config import PeerConfig, RunConfig, flatten
from barnraise.observe import vocabulary

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))
RUN_THERE = "tests/e2e/test_documented_commands.py"
"""Commands that train, and so take longer than a unit test may."""
RUN_BY = ("tests/e2e/test_examples.py", "tests/e2e/test_objects.py")
"""What runs the examples."""
_FENCE = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
_PYTHON = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\((?!https?://)([^)#]*)(#[^)]*)?\)")
_VARIABLE = re.compile(r"[A-Z_]+=\S+")


def commands() -> list[str]:
    """Return every line of every shell block."""
    blocks = (block for page in PAGES for block in _FENCE.findall((ROOT / page).read_text()))
    return sorted({line for block in blocks for line in block.splitlines() if line.strip()})


def barnraise_words(command: str) -> list[str] | None:
    """Return the words behind ``barnraise``, or None where another program is run."""
    words = [word for word in shlex.split(command) if not _VARIABLE.fullmatch(word)]
    return words[1:] if words[0] == ".venv/bin/barnraise" else None


def test_the_pages_have_commands() -> None:
    assert {"make train", "make test", ".venv/bin/barnraise train --help"} <= set(commands())


@pytest.mark.parametrize("command", commands())
def test_a_documented_command_is_understood(command: str) -> None:
    words = barnraise_words(command)
    if words is None and "examples/" in command:
        assert_an_example_is_run(command)
    elif words is None:
        assert_make_knows(command)
    elif not words or words[-1] in ("--help", "--version"):
        assert cli.main(words) == 0
    else:
        run = literals_of(ROOT / RUN_THERE)
        assert command in run, f"{command}: add it to {RUN_THERE}, which runs it"


def literals_of(file: Path) -> set[str]:
    """Return the texts that a program has in quotes: half a command is none of them."""
    return {node.value for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Constant)}


def assert_an_example_is_run(command: str) -> None:
    program, *_, example = shlex.split(command)
    assert program in (".venv/bin/python", ".venv/bin/torchrun"), command
    assert (ROOT / example).is_file(), command
    name = Path(example).stem
    tests = set().union(*(literals_of(ROOT / test) for test in RUN_BY))
    assert {name, f"{name}.py"} & tests, f"{command}: no test runs it"


def assert_make_knows(command: str) -> None:
    words = shlex.split(command)
    assert words[0] == "make", f"{command}: no test knows how to check this"
    subprocess.run(["make", "--dry-run", *words[1:]], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.parametrize("page", PAGES)
def test_python_in_the_pages_is_run(page: str) -> None:
    """A block is a program, which the test of the commands runs, or lines of one example or of one such program."""
    programs = [block for name in PAGES for block in _PYTHON.findall((ROOT / name).read_text()) if is_program(block)]
    run = [*(file.read_text() for file in (ROOT / "examples").glob("*.py")), *programs]
    known = [{line.strip() for line in text.splitlines()} | {"..."} for text in run]
    for block in _PYTHON.findall((ROOT / page).read_text()):
        compile(block, page, "exec")
        wanted = {line.strip() for line in block.splitlines()}
        assert any(wanted <= lines for lines in known), f"{page}: no example has these lines:\n{block}"


def is_program(block: str) -> bool:
    """Tell whether a block of a page stands by itself."""
    return block.startswith(("import ", "from "))


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for target, anchor in _LINK.findall((ROOT / page).read_text()):
        path = (ROOT / page).parent / target if target else ROOT / page
        assert path.exists(), f"{page}: {target}"
        if anchor:
            assert anchor.removeprefix("#") in anchors(path.read_text()), f"{page}: {anchor}"


def anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_reference_is_what_the_code_says() -> None:
    text = (ROOT / "docs/reference.md").read_text()
    assert text == reference.renewed(text), "run: make docs"
    parts = re.findall(r"<!-- begin (\w+) -->", text)
    assert sorted(parts) == sorted(reference.PARTS)


@pytest.mark.parametrize("verb", cli.VERBS)
def test_the_reference_has_every_option(verb: str) -> None:
    section = reference.commands().partition(f"### barnraise {verb}\n")[2].partition("\n### ")[0]
    documented = set(re.findall(r"`(--[\w-]+)`[^|]* \| [^|]", section))
    function = getattr(importlib.import_module(f"barnraise.cli.{verb}"), verb)
    assert len(re.findall(r"^\| `", section, re.MULTILINE)) == len(inspect.signature(function).parameters)
    assert {"--json"} & documented or "json" not in inspect.signature(function).parameters


def test_the_reference_has_every_key_with_its_meaning_and_range() -> None:
    text = reference.run_keys() + reference.peer_keys()
    keys = [*flatten(RunConfig()), *(f"peer.{name}" for name in PeerConfig.__dataclass_fields__)]
    assert re.findall(r"^\| `([\w.]+)` \|", text, re.MULTILINE) == keys
    assert "| `round.steps` | whole number, 1 to 1,048,576 | `25` | Inner steps per round (DiLoCo's H). |" in text
    assert "| `peer.data_dir` | path | required |" in text


def test_the_reference_has_every_event_with_its_fields() -> None:
    text = reference.events()
    for kind in typing.get_args(vocabulary.AnyEvent):
        fields = ", ".join(f"`{field.name}`" for field in msgspec.structs.fields(kind) if field.name != "time")
        assert f"| `{kind.__struct_config__.tag}` | {fields} |" in text


def test_an_unknown_part_of_a_page_is_not_passed_over() -> None:
    with pytest.raises(KeyError, match="nothing"):
        reference.renewed("<!-- begin nothing -->\n<!-- end nothing -->")
    assert reference.renewed("no part") == "no part"


def test_every_dependency_says_what_it_saves() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *itertools.chain(*project["optional-dependencies"].values())]
    names = {re.split(r"[<>=]", requirement)[0] for requirement in wanted}
    documented = re.findall(r"^\| ([\w-]+) \| ", (ROOT / "docs/dependencies.md").read_text(), re.MULTILINE)
    assert set(documented) - {"package"} == names


def test_the_constraints_name_every_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = {line.partition("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    wanted = [*project["dependencies"], *itertools.chain(*project["optional-dependencies"].values())]
    assert {re.split(r"[<>=]", requirement)[0].lower() for requirement in wanted} <= pinned
