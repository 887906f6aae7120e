"""Starts the processes that sections run in, and ends those that do not end.

Knows: processes, limits, what a worker says. Does not know: sections' insides, tables.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from gpu_bench.catalog import HOST_SECONDS, Section
from gpu_bench.records import Record
from gpu_bench.settings import Settings

HERE = Path(__file__).resolve().parents[1]
SOURCE = HERE.parents[1] / "src"
STAND_INS = ("msgspec", "llguidance")
PATIENCE = 4.0
"""A section, or a start, may take so many times what is expected."""
LEAST_LIMIT_S = 60.0
AFTER_DEADLINE_S = 20.0


def environment() -> dict[str, str]:
    """Of the processes: our sources without being installed, nothing fetched."""
    absent = [HERE / "standins" / f"without_{name}" for name in STAND_INS if not find_spec(name)]
    kept = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    path = [str(SOURCE), str(HERE), *map(str, absent), *kept]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path),
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def has_cuda() -> bool:
    """Whether torch, in a process of its own, can use a GPU."""
    program = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    done = subprocess.run([sys.executable, "-c", program], env=environment(), check=False)
    return done.returncode == 0


@dataclass
class Outcome:
    """Of one process: sections that it dealt with, well or not; those that it had no time for;
    why it could not start."""

    dealt: set[str]
    skipped: set[str]
    cannot: str | None = None


def run_host(
    settings: Settings, host: str, sections: Sequence[Section], done: Callable[[], None]
) -> tuple[Settings, set[str]]:
    """Run the sections, in as many processes as it takes; `done` is called after each. Returns the
    settings that it came to (`eager`, if nothing else starts) and what there was no time for."""
    left, skipped = list(sections), set()
    while left:
        if time.time() + HOST_SECONDS[host] + left[0].seconds > settings.deadline_s:
            skipped |= {one.name for one in left}
            break
        outcome = _process(settings, host, left, done)
        skipped |= outcome.skipped
        if outcome.cannot is not None:
            if host.startswith("engine") and not settings.eager:
                _say(f"{host} cannot start ({outcome.cannot}); trying again without capture")
                settings = replace(settings, eager=True)
                continue
            for one in left:
                _failed(settings, one, f"{host} cannot start: {outcome.cannot}")
            done()
            break
        left = [one for one in left if one.name not in outcome.dealt | skipped]
    return settings, skipped


def _process(
    settings: Settings, host: str, sections: Sequence[Section], done: Callable[[], None]
) -> Outcome:
    """One process, until it ends or is ended."""
    by_name = {one.name: one for one in sections}
    command = [sys.executable, "-m", "gpu_bench.worker", str(settings.write()), host, *by_name]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=environment(), start_new_session=True
    )
    words: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=_listen, args=(process, words), daemon=True).start()
    outcome = Outcome(set(), set())
    current: Section | None = None
    expected_s = HOST_SECONDS[host]
    while True:
        try:
            word = words.get(timeout=_limit_s(settings, expected_s))
        except queue.Empty:
            _end(process)
            _give_up(settings, outcome, current, sections, "it took too long and was ended")
            done()
            return outcome
        if word is None:
            break
        verb, _, name = word.strip().partition(" ")
        if verb == "begin":
            current, expected_s = by_name[name], by_name[name].seconds
            _say(f"{time.strftime('%H:%M:%S')} {name}")
        elif verb == "end":
            outcome.dealt.add(name)
            current, expected_s = None, LEAST_LIMIT_S
            done()
        elif verb == "skip":
            outcome.skipped.add(name)
        elif verb == "cannot":
            outcome.cannot = name
    status = process.wait()
    if outcome.cannot is None and status not in (0, 3):
        why = f"its process ended with status {status}"
        _give_up(settings, outcome, current, sections, why)
        done()
    return outcome


def _give_up(
    settings: Settings,
    outcome: Outcome,
    current: Section | None,
    sections: Sequence[Section],
    why: str,
) -> None:
    """The section that was under way failed; without one, the start did."""
    if current is not None:
        outcome.dealt.add(current.name)
        _failed(settings, current, why)
    elif {one.name for one in sections} - outcome.dealt - outcome.skipped:
        outcome.cannot = why


def _failed(settings: Settings, section: Section, why: str) -> None:
    Record(section.name, section.host, 0.0, time.time(), trouble=why).write(settings.records)


def _limit_s(settings: Settings, expected_s: float) -> float:
    """How long to wait for the next word."""
    generous_s = max(LEAST_LIMIT_S, PATIENCE * expected_s)
    return max(1.0, min(generous_s, settings.deadline_s + AFTER_DEADLINE_S - time.time()))


def _listen(process: subprocess.Popen[str], words: queue.Queue[str | None]) -> None:
    if process.stdout is not None:
        with process.stdout:
            for line in process.stdout:
                words.put(line)
    words.put(None)


def _end(process: subprocess.Popen[str]) -> None:
    """With all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
