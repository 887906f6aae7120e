"""Tensors from rank to rank: sums, a gather, sends.

Knows: torch.distributed's process groups, gloo on CPUs and NCCL on GPUs. Does not know: models,
steps, or what to do when a rank is gone: then a call raises, or waits for its timeout.

The group is an object of its own, not torch's default one, so that nothing in this process is
shared by accident and several ranks can live in one process in tests.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed

from gpt_oss_server.engine.ranks.place import Place
from gpt_oss_server.errors import StartupError

LOOPBACK = "127.0.0.1"
_INTERFACE = "GLOO_SOCKET_IFNAME"
# Its stubs name only part of what it exports, and NCCL only where torch was built with it.
_dist: Any = torch.distributed


class Store(Protocol):
    """Where ranks find each other (torch's TCPStore)."""

    @property
    def port(self) -> int: ...


def open_store(timeout_s: float) -> Store:
    """The leader's store, where ranks find each other; listens on loopback only, at a port that
    the system picks (`.port`). The leader keeps it for as long as there are ranks."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.bind((LOOPBACK, 0))
        port = listener.getsockname()[1]
        store: Store = _dist.TCPStore(
            LOOPBACK,
            port,
            is_master=True,
            wait_for_workers=False,
            timeout=timedelta(seconds=timeout_s),
            master_listen_fd=listener.detach(),  # the store closes it
        )
    except BaseException:
        listener.close()
        raise
    return store


class Transfer:
    """A tensor on its way out or in. It belongs to the transfer until `wait` has returned."""

    def __init__(self, work: Any, tensor: torch.Tensor, comms: Comms) -> None:
        self._work = work
        self._tensor = tensor
        self._comms = comms

    def wait(self) -> torch.Tensor:
        """The tensor, once it has gone or come (on CUDA: for the current stream's later work)."""
        self._comms.entered += 1
        self._work.wait()
        self._comms.left += 1
        return self._tensor


class Comms:
    """One rank's side of the group. Used by one thread. Every rank makes the same calls in the
    same order; a rank alone needs none of them and none does anything.

    `entered` counts the collectives and transfers that were entered or waited for here, `left`
    those that are over: for liveness, read by another thread. On CUDA a call is over once it is
    enqueued.
    """

    def __init__(self, place: Place, device: torch.device, group: Any) -> None:
        self.place = place
        self.device = device
        self.entered = 0
        self.left = 0
        self._group = group

    @classmethod
    def alone(cls, device: torch.device) -> Comms:
        """Of a world of one rank, without a group."""
        return cls(Place(), device, None)

    @classmethod
    def open(
        cls, place: Place, device: torch.device, store: Store | int, timeout_s: float
    ) -> Comms:
        """Join the group: the leader brings its store, the others its port. Returns when all
        ranks are there. `timeout_s` bounds this and, on a CPU, every call.

        Raises StartupError when the store or a rank is not there in time.
        """
        timeout = timedelta(seconds=timeout_s)
        try:
            joined: Any = store
            if isinstance(store, int):
                joined = _dist.TCPStore(LOOPBACK, store, is_master=False, timeout=timeout)
            comms = cls(place, device, _group(place, device, joined, timeout))
            comms.barrier()
        except (RuntimeError, OSError) as error:
            reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
            raise StartupError(
                f"rank {place.rank} of {place.world} cannot reach the others: {reason}"
            ) from error
        return comms

    def barrier(self) -> None:
        """Returns when every rank has come here."""
        self.all_reduce(torch.zeros(1, device=self.device))
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """The sum over ranks, in place (of a contiguous tensor) and bit for bit the same on each.
        Returns it."""
        if self._group is None:
            return x
        if not x.is_contiguous():
            x = x.contiguous()
        self.entered += 1
        self._group.allreduce([x]).wait()
        self.left += 1
        return x

    def gather_to_leader(self, x: torch.Tensor) -> list[torch.Tensor] | None:
        """Every rank's `x` (one shape and dtype), by rank, on the leader; None elsewhere."""
        if self._group is None:
            return [x]
        x = x.contiguous()
        parts = [torch.empty_like(x) for _ in range(self.place.world)]
        options = _dist.GatherOptions()
        options.rootRank = self.place.leader
        self.entered += 1
        self._group.gather([parts] if self.place.is_leader else [], [x], options).wait()
        self.left += 1
        return parts if self.place.is_leader else None

    def send(self, x: torch.Tensor, to_rank: int) -> Transfer:
        """Begin to send `x`; the receiver knows its shape and dtype. Between two ranks, what is
        sent first is received first."""
        x = x.contiguous()
        self.entered += 1
        transfer = Transfer(self._joined().send([x], to_rank, 0), x, self)
        self.left += 1
        return transfer

    def receive(self, shape: Sequence[int], dtype: torch.dtype, from_rank: int) -> torch.Tensor:
        """The next tensor from `from_rank`, on this rank's device."""
        return self.expect(shape, dtype, from_rank).wait()

    def expect(self, shape: Sequence[int], dtype: torch.dtype, from_rank: int) -> Transfer:
        """Begin to receive the next tensor from `from_rank`, behind those already expected: it
        comes while this rank does something else."""
        x = torch.empty(tuple(shape), dtype=dtype, device=self.device)
        return Transfer(self._joined().recv([x], from_rank, 0), x, self)

    def close(self) -> None:
        """Leave the group; other ranks' pending calls fail. Safe to call twice."""
        group, self._group = self._group, None
        if group is not None and self.device.type == "cuda":
            group.shutdown()

    def _joined(self) -> Any:
        if self._group is None:
            raise RuntimeError("this rank is alone: there is nobody to send to")
        return self._group


def _group(place: Place, device: torch.device, store: Store, timeout: timedelta) -> Any:
    """A gloo or NCCL group over the ranks of `place`'s world."""
    if device.type == "cuda":
        nccl = _dist.ProcessGroupNCCL
        nccl_options = nccl.Options()
        nccl_options._timeout = timeout
        torch.cuda.set_device(device)
        return nccl(_dist.PrefixStore("nccl", store), place.rank, place.world, nccl_options)
    gloo = _dist.ProcessGroupGloo
    options = gloo._Options()
    options._timeout = timeout
    interface = os.environ.get(_INTERFACE)
    options._devices = [
        gloo.create_device(interface=interface)
        if interface
        else gloo.create_device(hostname=LOOPBACK)
    ]
    return gloo(_dist.PrefixStore("gloo", store), place.rank, place.world, options)
