"""Files that cannot be written later are refused now, by the name of their setting."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gpt_oss_server.errors import ConfigError
from gpt_oss_server.paths import check_appendable


def test_what_can_be_written_is_left_as_it_is(tmp_path: Path) -> None:
    """An existing file keeps its content, a new one is made, none is none."""
    file = tmp_path / "log"
    file.write_text("kept\n")
    check_appendable("log_file", str(file))
    check_appendable("log_file", str(tmp_path / "new"))
    check_appendable("log_file", "/dev/null")
    check_appendable("log_file", None)
    assert file.read_text() == "kept\n"
    assert (tmp_path / "new").read_text() == ""


def test_what_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    """A folder, a folder that is not there, a file in place of a folder, a pipe nobody reads."""
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    for name, reason in {
        ".": f"{tmp_path}/. is a folder",
        "none/log": f"cannot write to {tmp_path}/none/log: No such file or directory",
        "file/log": f"cannot write to {tmp_path}/file/log: Not a directory",
        "pipe": f"cannot write to {tmp_path}/pipe: it is a pipe that nobody reads",
    }.items():
        with pytest.raises(ConfigError) as caught:
            check_appendable("decision_log", f"{tmp_path}/{name}")
        assert str(caught.value) == f"decision_log: {reason}"
        assert caught.value.exit_status == 2
