"""Settings: precedence, errors that name their source, secrets, and the generated page."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import pytest

from gpt_oss_server import config_doc
from gpt_oss_server.config import TABLE, Settings, load
from gpt_oss_server.config_flags import add_arguments
from gpt_oss_server.errors import ConfigError

ROOT = Path(__file__).parents[2]


def write(tmp_path: Path, text: str) -> dict[str, object]:
    """Flags that name a YAML file with this text."""
    file = tmp_path / "settings.yaml"
    file.write_text(text, encoding="utf-8")
    return {"config": str(file)}


def refusal(flags: dict[str, object], environ: dict[str, str] | None = None) -> str:
    """The one line with which these sources are refused."""
    with pytest.raises(ConfigError) as caught:
        load(flags, environ or {})
    assert caught.value.exit_status == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_defaults() -> None:
    """Without any source, the documented defaults hold."""
    settings = load({}, {})
    assert settings == Settings()
    assert (settings.model, settings.host, settings.port) == ("tiny", "127.0.0.1", 8000)
    assert (settings.max_body, settings.max_queue, settings.block_size) == (8 * 2**20, 256, 16)
    assert (settings.gpu_mode, settings.prefix_caching, settings.api_key) == ("single", True, ())
    assert settings.shutdown_grace_s == 30.0


def test_flag_wins_over_environment_over_file_over_default(tmp_path: Path) -> None:
    """Each source is overruled by the ones before it, setting by setting."""
    flags = write(tmp_path, "port: 1\nhost: file\nmodel: file\nmax_queue: 5\n") | {"port": "3"}
    environ = {"GPT_OSS_PORT": "2", "GPT_OSS_HOST": "environment", "UNRELATED": "x"}
    settings = load(flags, environ)
    assert (settings.port, settings.host, settings.model) == (3, "environment", "file")
    assert (settings.max_queue, settings.max_num_seqs) == (5, 64)


def test_the_file_can_be_named_by_the_environment(tmp_path: Path) -> None:
    """GPT_OSS_CONFIG is `--config`, and the flag wins."""
    named = write(tmp_path, "port: 1")["config"]
    other = tmp_path / "other.yaml"
    other.write_text("port: 2")
    assert load({}, {"GPT_OSS_CONFIG": str(named)}).port == 1
    assert load({"config": str(other)}, {"GPT_OSS_CONFIG": str(named)}).port == 2


@pytest.mark.parametrize("text", ["", "# only a comment\n", "max_model_len: null\n"])
def test_a_file_may_say_nothing(tmp_path: Path, text: str) -> None:
    """An empty file, and null where the default is "choose for me", change nothing."""
    assert load(write(tmp_path, text), {}) == Settings()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("prot: 1", "unknown setting 'prot'; did you mean port?"),
        ("1: 2", "unknown setting 1"),
        ("port: [1]", "port: must be an integer from 0 to 65535, got [1]"),
        ("port: null", "port: must be an integer from 0 to 65535, got None"),
        ("port: yes", "port: must be an integer from 0 to 65535, got True"),
        ("host: ''", "host: is empty; give a value or leave it out"),
        ("- port", "must be a mapping of settings to values"),
        ("port: 1\nhost: [", "is not valid YAML at line 2"),
        ("port: !!python/object:os.system x", "is not valid YAML at line 1"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, text: str, complaint: str) -> None:
    """An error in the file names the file, the key and what is wrong."""
    flags = write(tmp_path, text)
    message = refusal(flags)
    assert message.startswith(f"file {flags['config']}: ")
    assert message.removeprefix(f"file {flags['config']}: ") == complaint


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    """A missing file, a folder and a binary file are each one line."""
    missing = tmp_path / "none.yaml"
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    no_file = f"file {missing}: cannot be read: No such file or directory"
    assert refusal({"config": str(missing)}) == no_file
    assert refusal({}, {"GPT_OSS_CONFIG": str(missing)}) == no_file
    assert refusal({"config": str(tmp_path)}) == f"file {tmp_path}: cannot be read: Is a directory"
    assert refusal({"config": str(binary)}) == f"file {binary}: is not valid YAML"


@pytest.mark.parametrize(
    ("environ", "complaint"),
    [
        (
            {"GPT_OSS_PROT": "1"},
            "environment GPT_OSS_PROT: unknown setting; did you mean GPT_OSS_PORT?",
        ),
        (
            {"GPT_OSS_PORT": "http"},
            "environment GPT_OSS_PORT: must be an integer from 0 to 65535, got 'http'",
        ),
        (
            {"GPT_OSS_API_KEY": ""},
            "environment GPT_OSS_API_KEY: is empty; give a value or leave it out",
        ),
        (
            {"GPT_OSS_GPUS": "2"},
            "environment GPT_OSS_GPUS: 2 GPUs need gpu_mode auto, tensor or pipeline, not single",
        ),
    ],
)
def test_a_wrong_environment_is_named(environ: dict[str, str], complaint: str) -> None:
    """An error in the environment names the variable; an empty key never opens the server."""
    assert refusal({}, environ) == complaint


def test_settings_that_are_impossible_together() -> None:
    """Contradictions name the setting that would have to change."""
    assert refusal({"gpu_mode": "tensor", "offload": "cpu"}) == (
        "flag --offload: is for gpu_mode auto, not tensor"
    )
    assert refusal({"gpu_mode": "tensor", "device": "cpu"}) == (
        "flag --device: gpu_mode tensor on a CPU needs gpus: over how many processes"
    )
    assert refusal({"gpu_mode": "pipeline", "gpus": "1"}) == (
        "flag --gpus: gpu_mode pipeline needs at least 2, got 1"
    )
    assert refusal({"gpu_mode": "tensor", "micro_batches": "2"}) == (
        "flag --micro-batches: only gpu_mode pipeline has micro-batches, not tensor"
    )
    assert refusal({"max_model_len": "100", "default_max_tokens": "100"}) == (
        "flag --default-max-tokens: must be below max_model_len (100), got 100"
    )


def test_every_setting_has_every_source() -> None:
    """Each field can be given by flag, environment and file, and is documented."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    flags = {flag for action in parser._actions for flag in action.option_strings}
    page = config_doc.render()
    assert {row.name for row in TABLE} == {field.name for field in dataclasses.fields(Settings)}
    for row in TABLE:
        assert row.flag in flags
        for spelling in (f"`{row.flag}`", f"`{row.env}`", f"`{row.name}`", row.help):
            assert spelling.replace("|", "\\|") in page


def test_help_shows_every_default() -> None:
    """`--help` prints, for each setting, its default and its variable."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    text = " ".join(parser.format_help().split())
    for row in TABLE:
        assert f"(default: {row.default_text}; env: {row.env})" in text


def test_every_default_is_allowed() -> None:
    """What the table gives as default passes the table's own validation."""
    for row in TABLE:
        if row.default not in (None, ()):
            assert row.kind.parse(row.default) == row.default


def test_secrets_are_never_shown() -> None:
    """Neither `repr` nor the redacted form holds a key; both say whether one is set."""
    settings = load({"api_key": ["sk-one", "sk-two"]}, {"GPT_OSS_ADMIN_KEY": "sk-admin"})
    assert settings.api_key == ("sk-one", "sk-two")
    assert settings.admin_key == "sk-admin"
    shown = settings.redacted()
    assert (shown["api_key"], shown["admin_key"]) == ("set", "set")
    assert Settings().redacted()["api_key"] == "not set"
    assert shown["port"] == 8000
    assert "sk-" not in f"{shown} {settings!r} {settings}"


def test_the_configuration_page_is_up_to_date() -> None:
    """docs/configuration.md is what the table generates (`make docs` writes it)."""
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert page == config_doc.render()
