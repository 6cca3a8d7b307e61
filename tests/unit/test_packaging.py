"""The service unit and the container's recipe: what can be checked of them without root and without Docker."""

import configparser
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from barnraise import cli
from barnraise.config import BULK_PORT, CONTROL_PORT

PACKAGING = Path(__file__).parents[2] / "packaging"
UNIT = PACKAGING / "barnraise.service"
RECIPE = (PACKAGING / "Dockerfile").read_text()


@pytest.fixture
def unit() -> configparser.RawConfigParser:
    """The unit's settings; none of its keys is there twice."""
    parser = configparser.RawConfigParser(delimiters=("=",), comment_prefixes=("#",))
    parser.optionxform = str  # type: ignore[method-assign, assignment]
    parser.read_string(UNIT.read_text())
    return parser


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd on this machine")
def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace("/opt/barnraise/bin/barnraise", "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", str(copy)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_service_leaves_in_order_and_has_no_rights_to_spare(unit: configparser.RawConfigParser) -> None:
    service = unit["Service"]
    assert (service["KillSignal"], service["KillMode"], service["TimeoutStopSec"]) == ("SIGINT", "mixed", "300")
    assert service["RestartPreventExitStatus"] == "2"
    assert (service["NoNewPrivileges"], service["ProtectSystem"], service["DynamicUser"]) == ("yes", "strict", "yes")
    assert service["CapabilityBoundingSet"] == ""


def test_what_they_start_is_a_command(unit: configparser.RawConfigParser, capsys: pytest.CaptureFixture[str]) -> None:
    program, verb, option, _ = unit["Service"]["ExecStart"].split()
    assert program.endswith("/barnraise")
    assert cli.main([verb, "--help"]) == 0
    assert option in capsys.readouterr().out
    assert 'ENTRYPOINT ["barnraise"]' in RECIPE
    assert re.search(r'CMD \["(\w+)"\]', RECIPE).group(1) in cli.VERBS  # type: ignore[union-attr]


def test_the_final_image_is_without_compiler_and_without_root() -> None:
    final = RECIPE.rpartition("\nFROM ")[2]
    assert not re.search(r"\bgcc\b|build-essential|-dev\b", final)
    assert "gcc" in RECIPE.rpartition("\nFROM ")[0]
    lines = final.splitlines()
    assert lines.index("USER barnraise") < next(n for n, line in enumerate(lines) if line.startswith("ENTRYPOINT"))
    assert {"VOLUME /data", "STOPSIGNAL SIGINT", f"EXPOSE {CONTROL_PORT}/tcp {BULK_PORT}/tcp"} <= set(lines)


def test_what_the_recipe_copies_is_there() -> None:
    root = PACKAGING.parent
    for names in re.findall(r"^COPY (?!--from)(.+) \S+$", RECIPE, re.MULTILINE):
        assert all((root / name).exists() for name in names.split())
