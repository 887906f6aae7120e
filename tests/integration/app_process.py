"""A server process over the fake engine, for tests of how the real one starts and ends.

Run as a program it serves with parts chosen by name; lines on its stdin steer the fake engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import msgspec

from gpt_oss_server import cli
from gpt_oss_server.app import Parts, serve
from gpt_oss_server.commands import COMMANDS, Command
from gpt_oss_server.config import Settings, load
from gpt_oss_server.engine.fake import DEFAULT_INFO, FakeEngine
from gpt_oss_server.errors import StartupError
from gpt_oss_server.hub import ResolvedModel
from gpt_oss_server.ports import Engine
from gpt_oss_server.types import Job, TokenDelta


class TinyFake(FakeEngine):
    """The fake engine with the vocabulary of `tiny`."""

    def __init__(self) -> None:
        super().__init__(info=msgspec.structs.replace(DEFAULT_INFO, vocab_size=2**18))


def say(line: str) -> None:
    """Print a line that no other thread's is mixed into: `print` writes its end by itself."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


class SteeredEngine(TinyFake):
    """Its gate is opened and closed by lines on stdin; it tells of every job that it takes."""

    async def generate(self, job: Job) -> AsyncGenerator[TokenDelta, None]:
        say("job")
        async with contextlib.aclosing(super().generate(job)) as deltas:
            async for delta in deltas:
                yield delta

    async def start(self) -> None:
        await super().start()
        loop = asyncio.get_running_loop()
        orders: dict[str, Callable[[], None]] = {
            "open": self.open_gate,
            "close": self.close_gate,
            "pass": lambda: self.let_pass(1),
            "frozen": lambda: say(f"frozen: {gc.get_freeze_count()}"),
        }

        def read() -> None:
            for line in sys.stdin:
                loop.call_soon_threadsafe(orders[line.strip()])
                say(f"done: {line.strip()}")

        threading.Thread(target=read, daemon=True).start()


class FailingEngine(TinyFake):
    """Its first start fails, as with a checkpoint that does not fit."""

    async def start(self) -> None:
        raise StartupError("model needs 39 GiB and 20 GiB are free: choose a smaller one")


class LoadingEngine(TinyFake):
    """Never ends loading."""

    async def start(self) -> None:
        await asyncio.Event().wait()


def download_for_ever(settings: Settings) -> ResolvedModel:
    """As the hub client does: in threads that the interpreter joins before it ends."""
    never = threading.Event()
    with ThreadPoolExecutor() as pool:
        pool.submit(never.wait).result()
    raise StartupError("cannot happen")


def engine_of(kind: Callable[[], Engine]) -> Callable[..., Engine]:
    """A maker that ignores the specification."""
    return lambda spec, emit: kind()


PARTS = {
    "real": Parts(),
    "steered": Parts(make_engine=engine_of(SteeredEngine)),
    "failing": Parts(make_engine=engine_of(FailingEngine)),
    "loading": Parts(make_engine=engine_of(LoadingEngine)),
    "downloading": Parts(resolve_model=download_for_ever, make_engine=engine_of(TinyFake)),
    "no-gpu": Parts(make_engine=engine_of(TinyFake), count_gpus=lambda: 0),
    "two-gpus": Parts(make_engine=engine_of(TinyFake), count_gpus=lambda: 2),
}


class ServerProcess:
    """A running server, and the lines it prints."""

    def __init__(self, parts: str, *flags: str) -> None:
        environ = {k: v for k, v in os.environ.items() if not k.startswith("GPT_OSS_")}
        self.process = subprocess.Popen(
            [sys.executable, __file__, parts, "--port", "0", *flags],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environ | {"NO_PROXY": "127.0.0.1"},
        )
        self.printed: list[str] = []

    def read_until(self, beginning: str) -> str:
        """The next line that begins so; fails at the end of the output."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.printed.append(line)
            if line.startswith(beginning):
                return line.strip()
        raise AssertionError(f"no line {beginning!r} in {self.printed}: {self.end()}")

    def url(self) -> str:
        """Where it listens, from its first line."""
        self._url = self.read_until("gpt-oss-server").rpartition(" ")[2]
        return self._url

    def wait_for_refusal(self) -> None:
        """Return once it accepts no connection any more."""
        while True:
            try:
                with client(self._url) as http:
                    http.get("/live")
            except httpx.TransportError:
                return

    def order(self, word: str) -> None:
        """Steer the engine; returns once it has obeyed."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()
        self.read_until(f"done: {word}")

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def end(self) -> tuple[int, str, str]:
        """Exit status, the rest of stdout, all of stderr."""
        out, err = self.process.communicate(timeout=30)
        return self.process.returncode, out, err


def complaints(err: str) -> list[str]:
    """What a server logged besides its requests: `level message` per line of its stderr."""
    lines = [msgspec.json.decode(line) for line in err.splitlines()]
    return [f"{line['level']} {line['message']}" for line in lines if line["event_type"] == "log"]


@contextlib.contextmanager
def running(parts: str, *flags: str) -> Iterator[ServerProcess]:
    """A server process, killed at the end if it still runs."""
    server = ServerProcess(parts, *flags)
    try:
        yield server
    finally:
        server.process.kill()
        server.process.communicate()


def client(url: str) -> httpx.Client:
    """An HTTP client that ignores proxies and gives up after 30 s."""
    return httpx.Client(base_url=url, trust_env=False, timeout=30)


def main(parts: str, argv: list[str]) -> int:
    """`serve` with other parts, through the real command line."""
    command = COMMANDS["serve"]
    COMMANDS["serve"] = Command(
        command.summary,
        command.add_arguments,
        lambda flags: serve(load(flags, os.environ), PARTS[parts]),
    )
    return cli.main(["serve", *argv])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
