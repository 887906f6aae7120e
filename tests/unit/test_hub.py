"""From a model's name to its folder: aliases, local folders, and a hub that is really asked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from gpt_oss_server.errors import StartupError
from gpt_oss_server.hub import identify, resolve_model

CONFIG = json.dumps({"model_type": "gpt_oss"})
COMMIT = "0123456789abcdef0123456789abcdef01234567"
RESOLVE = """
import sys
from gpt_oss_server.errors import StartupError
from gpt_oss_server.hub import resolve_model
try:
    print(resolve_model(sys.argv[1], weights=sys.argv[2] == "weights").folder)
except StartupError as error:
    print("StartupError:", error)
"""


def model_folder(parent: Path, **files: str) -> Path:
    """A folder with these files (`__` in a name stands for a dot)."""
    folder = parent / "my-model"
    folder.mkdir()
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


def refusal(name: str) -> str:
    """The one line with which a model is refused."""
    with pytest.raises(StartupError) as caught:
        resolve_model(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "model_id", "short_name", "names"),
    [
        ("20b", "openai/gpt-oss-20b", "gpt-oss-20b", ("gpt-oss-20b", "openai/gpt-oss-20b", "20b")),
        (
            "120b",
            "openai/gpt-oss-120b",
            "gpt-oss-120b",
            ("gpt-oss-120b", "openai/gpt-oss-120b", "120b"),
        ),
        ("tiny", "tiny", "tiny", ("tiny",)),
        (
            "Qwen/Qwen3-0.6B",
            "Qwen/Qwen3-0.6B",
            "Qwen3-0.6B",
            ("Qwen3-0.6B", "Qwen/Qwen3-0.6B"),
        ),
        ("gpt2", "gpt2", "gpt2", ("gpt2",)),
    ],
)
def test_what_a_model_is_called(
    name: str, model_id: str, short_name: str, names: tuple[str, ...]
) -> None:
    """Aliases and ids give the full id, the short name and every name that requests may use."""
    identity = identify(name)
    assert (identity.model_id, identity.short_name) == (model_id, short_name)
    assert identity.builtin == (name == "tiny")
    assert identity.names() == names
    assert identity.names("mine") == ("mine", *names)
    assert identity.names(names[0]) == names


@pytest.mark.parametrize("name", ["a/b/c", "not a model", "x--y", "-x", "a/..", "ü"])
def test_a_name_that_can_be_nothing(name: str) -> None:
    """A name that is neither a folder nor a possible id is refused without asking the hub."""
    assert refusal(name).startswith(f"model {name!r} is neither a folder here nor a Hugging Face")


def test_the_built_in_model_is_packaged() -> None:
    """`tiny` resolves to a folder inside the package, without a network."""
    model = resolve_model("tiny")
    assert model.builtin
    assert model.folder.parts[-3:] == ("gpt_oss_server", "models", "tiny")
    assert json.loads((model.folder / "config.json").read_text())["model_type"] == "gpt_oss"
    assert (model.folder / "model.safetensors").is_file()


def test_a_local_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A complete folder is found by absolute and by relative path and named after itself."""
    folder = model_folder(
        tmp_path, config__json=CONFIG, tokenizer__json="{}", model__safetensors="x"
    )
    monkeypatch.chdir(tmp_path)
    for name in (str(folder), "my-model", "./my-model/"):
        model = resolve_model(name)
        assert (model.folder, model.model_id, model.builtin) == (folder, "my-model", False)
        assert model.names() == ("my-model",)


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ({}, "{} is not a model folder: it has no config.json"),
        ({"config__json": "{"}, "{} is not a model folder: config.json is not valid JSON"),
        ({"config__json": "[]"}, "{} is not a model folder: config.json is not a JSON object"),
        ({"config__json": CONFIG}, "{} has no tokenizer: it must hold tokenizer.json"),
        (
            {"config__json": CONFIG, "tokenizer__json": "{}"},
            "{} has no weights (*.safetensors): download them, or choose --load-format random to "
            "try the server with random ones",
        ),
        (
            {
                "config__json": CONFIG,
                "tokenizer__json": "{}",
                "a__safetensors": "x",
                "model__safetensors__index__json": json.dumps(
                    {"weight_map": {"w": "a.safetensors", "v": "b.safetensors"}}
                ),
            },
            "{} is incomplete: weight file b.safetensors is missing; download the model again",
        ),
    ],
)
def test_a_folder_that_is_no_model(tmp_path: Path, files: dict[str, str], complaint: str) -> None:
    """What a folder lacks is said before any process is started for it."""
    folder = model_folder(tmp_path, **files)
    assert refusal(str(folder)) == complaint.format(folder)


def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    """A missing path is never taken for a hub id."""
    missing = tmp_path / "none"
    assert refusal(str(missing)) == f"model folder {missing} does not exist"


def test_random_weights_need_no_weights(tmp_path: Path) -> None:
    """Configuration and tokenizer are enough for a model whose weights are drawn."""
    folder = model_folder(tmp_path, config__json=CONFIG, tokenizer__json="{}")
    assert resolve_model(str(folder), weights=False).folder == folder


NOT_CACHED = (
    "StartupError: model {} is not complete in the local cache and the Hugging Face hub cannot be "
    "reached: check the network (HF_HUB_OFFLINE, proxy), or give --model a local folder"
)
REPOSITORY = {
    "config.json": CONFIG,
    "tokenizer.json": "{}",
    "model.safetensors": "weights",
    "pytorch_model.bin": "the same again",
    "original/model.safetensors": "the same again",
    "metal/model.bin": "the same again",
}


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's HTTP interface as fetching a snapshot uses."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/org/gated"):
            self.answer(403, b"{}", {"X-Error-Code": "GatedRepo"})
        elif path.startswith("/api/models/org/model/tree/"):
            tree = [
                {"type": "file", "path": name, "size": len(text), "oid": name}
                for name, text in REPOSITORY.items()
            ]
            self.answer(200, json.dumps(tree).encode())
        elif path.startswith("/api/models/org/model"):
            siblings = [{"rfilename": name} for name in REPOSITORY]
            body = {"id": "org/model", "sha": COMMIT, "siblings": siblings}
            self.answer(200, json.dumps(body).encode())
        elif path.startswith(f"/org/model/resolve/{COMMIT}/"):
            name = path.removeprefix(f"/org/model/resolve/{COMMIT}/")
            headers = {"ETag": f'"{name}"', "X-Repo-Commit": COMMIT}
            self.answer(200, REPOSITORY[name].encode(), headers)
        else:
            self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def hub() -> Iterator[str]:
    """The address of a running hub."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def resolve_in(tmp_path: Path) -> Callable[..., str]:
    """Resolve a model in a process of its own, with a cache of its own; what it printed."""

    def resolve(name: str, endpoint: str, *, weights: bool = True, offline: bool = False) -> str:
        environ = {
            **os.environ,
            "HF_HOME": str(tmp_path),
            "HF_ENDPOINT": endpoint,
            "HF_HUB_OFFLINE": str(int(offline)),
            "HF_HUB_DISABLE_XET": "1",
            "NO_PROXY": "127.0.0.1",
        }
        environ.pop("HF_TOKEN", None)
        done = subprocess.run(
            [sys.executable, "-c", RESOLVE, name, "weights" if weights else "no"],
            env=environ,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
        return done.stdout.strip()

    return resolve


def files_of(folder: str) -> set[str]:
    """The files below a folder."""
    return {str(p.relative_to(folder)) for p in Path(folder).rglob("*") if p.is_file()}


def test_a_hub_model_is_fetched_once(resolve_in: Callable[..., str]) -> None:
    """One format of the weights is fetched, and afterwards no network is needed."""
    with hub() as endpoint:
        folder = resolve_in("org/model", endpoint)
        assert files_of(folder) == {"config.json", "tokenizer.json", "model.safetensors"}
    assert resolve_in("org/model", endpoint) == folder
    assert resolve_in("org/model", endpoint, offline=True) == folder


def test_only_what_random_weights_need_is_fetched(resolve_in: Callable[..., str]) -> None:
    """Without weights, none is fetched; a later start that needs them, offline, says so."""
    with hub() as endpoint:
        folder = resolve_in("org/model", endpoint, weights=False)
        assert files_of(folder) == {"config.json", "tokenizer.json"}
    assert resolve_in("org/model", endpoint, weights=False, offline=True) == folder
    assert resolve_in("org/model", endpoint, offline=True) == NOT_CACHED.format("org/model")


@pytest.mark.parametrize(
    ("name", "line"),
    [
        (
            "org/gated",
            "model org/gated is gated: accept its terms on its page of the hub and set HF_TOKEN",
        ),
        (
            "org/none",
            "model org/none does not exist on the Hugging Face hub, or is private: check the "
            "spelling, or set HF_TOKEN",
        ),
    ],
)
def test_models_that_the_hub_refuses(resolve_in: Callable[..., str], name: str, line: str) -> None:
    """A gated and an unknown model are one line each that says what to do."""
    with hub() as endpoint:
        assert resolve_in(name, endpoint) == f"StartupError: {line}"


@pytest.mark.parametrize("offline", [True, False])
def test_no_network_and_nothing_cached(resolve_in: Callable[..., str], offline: bool) -> None:
    """Without a network, whether declared or found out, the line says what to do."""
    with hub() as endpoint:
        pass
    line = resolve_in("20b", endpoint, offline=offline)
    assert line == NOT_CACHED.format("openai/gpt-oss-20b")
