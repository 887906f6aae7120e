"""The command line: exit statuses, one line per failure, and the shim that equals `serve`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from gpt_oss_server import __version__, cli
from gpt_oss_server.commands import COMMANDS, Command
from gpt_oss_server.errors import ConfigError, StartupError

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of whoever runs the tests."""
    import os

    for name in list(os.environ):
        if name.startswith("GPT_OSS_"):
            monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (
            [],
            "the following arguments are required: COMMAND (see gpt-oss-server --help)",
        ),
        (["serve", "--prot", "1"], "unknown flag --prot (see gpt-oss-server serve --help)"),
        (["serve", "--por", "1"], "unknown flag --por (see gpt-oss-server serve --help)"),
        (["serve", "--apikey=sk-1"], "unknown flag --apikey (see gpt-oss-server serve --help)"),
        (["serve", "extra"], "unknown argument extra (see gpt-oss-server serve --help)"),
        (
            ["serve", "--port"],
            "flag --port: expected one argument (see gpt-oss-server serve --help)",
        ),
        (
            ["serve", "--port", "65536"],
            "flag --port: must be an integer from 0 to 65535, got '65536'",
        ),
        (
            ["serve", "--gpu-mode", "both"],
            "flag --gpu-mode: must be one of single, auto, tensor, pipeline, got 'both'",
        ),
    ],
)
def test_wrong_arguments(argv: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong argument is one line on stderr that names it, exit status 2, no value echoed."""
    assert cli.main(argv) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"error: {line}\n")


def test_an_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown subcommand is refused in one line that lists those there are."""
    assert cli.main(["fly"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: argument COMMAND: invalid choice: 'fly'")
    assert err.count("\n") == 1
    assert "serve" in err


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    """`--version` and `--help` print to stdout and end with 0."""
    for argv, expected in ((["--version"], f"gpt-oss-server {__version__}\n"), (["--help"], None)):
        with pytest.raises(SystemExit) as caught:
            cli.main(argv)
        assert caught.value.code == 0
        out = capsys.readouterr().out
        assert out == expected if expected else all(name in out for name in COMMANDS)


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (StartupError("port 1 is in use"), 1, "error: port 1 is in use\n"),
        (ConfigError("flag --x: no"), 2, "error: flag --x: no\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_how_a_command_fails(
    error: BaseException,
    status: int,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """An expected failure is one line and its own exit status; an interrupt says nothing."""

    def fail(flags: Mapping[str, object]) -> int:
        raise error

    monkeypatch.setitem(COMMANDS, "fail", Command("Fails.", lambda parser: None, fail))
    assert cli.main(["fail"]) == status
    assert capsys.readouterr() == ("", line)


def test_a_command_gets_only_the_flags_that_were_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """Raw values reach the command; what was not given is absent, so that other sources count."""
    seen: list[Mapping[str, object]] = []

    def record(flags: Mapping[str, object]) -> int:
        seen.append(dict(flags))
        return 7

    serve = COMMANDS["serve"]
    monkeypatch.setitem(COMMANDS, "serve", Command("", serve.add_arguments, record))
    argv = ["serve", "--port", "1", "--no-prefix-caching", "--api-key", "a", "--api-key", "b"]
    assert cli.main(argv) == 7
    assert seen == [{"port": "1", "prefix_caching": False, "api_key": ["a", "b"]}]


@pytest.mark.parametrize(
    "command",
    [
        [sys.executable, "src/server.py"],
        [sys.executable, "-m", "gpt_oss_server", "serve"],
    ],
)
def test_the_shim_is_serve(command: list[str]) -> None:
    """`python src/server.py …` reads the same flags as `serve …` and fails in the same way."""
    done = subprocess.run(
        [*command, "--model", "120b", "--gpu-mode", "auto", "--port", "-1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "error: flag --port: must be an integer from 0 to 65535, got '-1'\n"
