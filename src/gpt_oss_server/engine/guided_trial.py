"""A process that compiles a grammar first, so that a hostile one takes nothing else down.

Knows: what a grammar may cost: address space, processor time, time per step. Does not know:
models. Run as `python -m gpt_oss_server.engine.guided_trial` by `Trial`; frames of msgpack
on stdin and stdout.

The library bounds most of what a grammar can cost, not all: a chain of a few thousand
references overflows a thread's stack, a long regular expression takes gigabytes. Both end a
process; here that is an answer. What compiles here within its bounds, and follows a few random
steps, is compiled again by the worker, where the same work is known to end.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Final, TypeVar

import msgspec
import numpy as np
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from gpt_oss_server.engine.guided_grammar import COMPILE_STACK_BYTES, GrammarError, compiled
from gpt_oss_server.types import Grammar

T = TypeVar("T")

ADDRESS_SPACE_BYTES: Final = 1 << 30
COMPILE_CPU_S: Final = 4.0
STEP_CPU_S: Final = 0.25
ANSWER_WITHIN_S: Final = 15.0
STEPS: Final = 48
TRIALS_PER_PROCESS: Final = 200
LENGTH_BYTES: Final = 4

_STEP_STACK_BYTES: Final = 4 << 20
_TOO_COSTLY: Final = "too complex: it takes too much time or memory to compile"


class Trial:
    """The parent's end. Not safe for several threads at once; `judge` blocks."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._judged = 0

    def judge(self, grammar: Grammar) -> None:
        """Raises GrammarError if the grammar does not compile, or costs too much."""
        if self._judged >= TRIALS_PER_PROCESS:
            self.close()  # its address space fragments
        process = self._process or self._spawn()
        self._judged += 1
        payload = msgspec.msgpack.encode(grammar)
        try:
            answer = _exchange(process, payload)
        except (OSError, EOFError, TimeoutError):
            self.close()
            raise GrammarError(_TOO_COSTLY) from None
        if answer:
            raise GrammarError(answer)

    def close(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _spawn(self) -> subprocess.Popen[bytes]:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            # Each thread of an allocator's arena reserves address space, which is bounded here.
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
        self._judged = 0
        return self._process


def _exchange(process: subprocess.Popen[bytes], payload: bytes) -> str:
    """One question, one answer. Raises OSError, EOFError or TimeoutError."""
    if process.stdin is None or process.stdout is None:
        raise EOFError
    process.stdin.write(len(payload).to_bytes(LENGTH_BYTES, "big") + payload)
    process.stdin.flush()
    deadline_s = time.monotonic() + ANSWER_WITHIN_S
    answer = b""
    while not answer.endswith(b"\n"):
        left_s = deadline_s - time.monotonic()
        if left_s <= 0 or not select.select([process.stdout], [], [], left_s)[0]:
            raise TimeoutError
        data = os.read(process.stdout.fileno(), 4096)
        if not data:
            raise EOFError
        answer += data
    return answer.decode("utf-8", errors="replace").rstrip("\n")


# The child.


class _Bytes:
    """A vocabulary of the 256 bytes and an end: what a grammar costs hardly depends on it."""

    eos_token_id = 256
    bos_token_id = None
    special_token_ids: Final = (256,)
    tokens: Final = (*(bytes([b]) for b in range(256)), b"\xffend")

    def __call__(self, text: bytes | str) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


def _in_thread(stack_bytes: int, work: Callable[[], T]) -> T:
    """Run `work` on a stack of the given size."""
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:  # noqa: BLE001 - handed to the caller
            errors.append(error)

    threading.stack_size(stack_bytes)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def judge_here(tokenizer: LLTokenizer, grammar: Grammar) -> str:
    """The child's answer: empty, or what is wrong with the grammar."""
    try:
        began_s = time.process_time()
        # Half of what the worker grants: what is fine here is fine there.
        matcher = _in_thread(COMPILE_STACK_BYTES // 2, lambda: compiled(tokenizer, grammar))
        if time.process_time() - began_s > COMPILE_CPU_S:
            return _TOO_COSTLY
        return _in_thread(_STEP_STACK_BYTES, lambda: _walk(matcher))
    except GrammarError as error:
        return str(error)


def _walk(matcher: LLMatcher) -> str:
    """A few random steps: each must be affordable, as a batch waits for the slowest."""
    rng = random.Random(0)
    row = np.zeros(9, dtype=np.int32)
    for step in range(STEPS):
        began_s = time.process_time()
        matcher.unsafe_compute_mask_ptr(row.ctypes.data, row.nbytes)
        if time.process_time() - began_s > STEP_CPU_S:
            return "too complex: it takes too long to follow"
        flags = np.unpackbits(row.view(np.uint8), bitorder="little")[:256]
        allowed = np.flatnonzero(flags).tolist()
        if step == 0 and not row.any():
            return "no text can match it"
        if not allowed or not matcher.consume_token(rng.choice(allowed)):
            break
    return ""


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES, ADDRESS_SPACE_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    tokenizer = LLTokenizer(TokenizerWrapper(_Bytes()))
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    while header := source.read(LENGTH_BYTES):
        grammar = msgspec.msgpack.decode(source.read(int.from_bytes(header, "big")), type=Grammar)
        sink.write(judge_here(tokenizer, grammar).replace("\n", " ").encode() + b"\n")
        sink.flush()


if __name__ == "__main__":
    main()
