"""Real ranks for tests: one process each, joined by gloo, all doing the same.

Knows: how to start them, hand each its `Comms`, and collect what they return. Does not know:
models, engines.
"""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

TIMEOUT_S = 120.0
PRELOADED = (
    "torch",
    "transformers.models.gpt_oss.modeling_gpt_oss",
    "transformers.models.llama.modeling_llama",
    "gpt_oss_server.engine.ranks.part",
    "gpt_oss_server.engine.core",
)


def tensor_ranks(world: int, work: Callable[..., Any], *args: Any) -> list[Any]:
    """What `work(comms, *args)` (a module's function) returns on each of `world` tensor ranks.

    Raises RuntimeError with the traceback of the first rank that failed.
    """
    return _ranks("tp", world, work, args)


def stages(world: int, work: Callable[..., Any], *args: Any) -> list[Any]:
    """The same on `world` pipeline stages."""
    return _ranks("pp", world, work, args)


def _ranks(kind: str, world: int, work: Callable[..., Any], args: tuple[Any, ...]) -> list[Any]:
    from gpt_oss_server.engine.ranks.comms import open_store

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    # This process keeps the store, and is no rank: a leader that fails is seen like any other.
    store = open_store(TIMEOUT_S)
    processes, pipes = [], []
    for rank in range(world):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(
            target=_rank, args=(theirs, kind, rank, world, store.port, work, args), daemon=True
        )
        process.start()
        theirs.close()
        processes.append(process)
        pipes.append(ours)
    try:
        return [_answer(rank, pipe) for rank, pipe in enumerate(pipes)]
    finally:
        for process in processes:
            process.kill()
            process.join()
        for pipe in pipes:
            pipe.close()


def _answer(rank: int, pipe: Connection) -> Any:
    if not pipe.poll(TIMEOUT_S):
        raise RuntimeError(f"rank {rank} said nothing for {TIMEOUT_S} s")
    try:
        failed, answer = pipe.recv()
    except EOFError as error:
        raise RuntimeError(f"rank {rank} died") from error
    if failed:
        raise RuntimeError(f"rank {rank}:\n{answer}")
    return answer


def _rank(
    pipe: Connection,
    kind: str,
    rank: int,
    world: int,
    port: int,
    work: Callable[..., Any],
    args: tuple[Any, ...],
) -> None:
    import torch

    from gpt_oss_server.engine.ranks.comms import Comms
    from gpt_oss_server.engine.ranks.place import Place

    torch.set_num_threads(1)
    place = Place(rank, **{kind: world})
    comms = None
    try:
        comms = Comms.open(place, torch.device("cpu"), port, TIMEOUT_S)
        pipe.send((False, work(comms, *args)))
    except BaseException:  # noqa: BLE001 - the parent raises it
        pipe.send((True, traceback.format_exc()))
    finally:
        # The others may still be in a call that needs this rank: they are killed, not waited for.
        pipe.close()
        if comms is not None:
            comms.close()
