"""Sessions: which conversations have KV worth keeping, and which go first.

Knows: keys, moments of last use, prefix sizes. Does not know: blocks or the prefix cache itself;
it says what may be kept and what to let go. Number and size are bounded: a key comes from a
client. A session with a request in flight is never evicted.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

import msgspec

from gpt_oss_server.limits import check_int, check_number

EvictionReason = Literal["idle", "count", "pressure"]


class SessionConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Validated limits. `max_session_kv_bytes` is per session; None for no limit. Raises
    ConfigError."""

    max_sessions: int = 1024
    max_session_kv_bytes: int | None = None
    idle_s: float = 600.0

    def __post_init__(self) -> None:
        check_int("max_sessions", self.max_sessions, low=1)
        check_number("idle_s", self.idle_s, low=0, above=True)
        if self.max_session_kv_bytes is not None:
            check_int("max_session_kv_bytes", self.max_session_kv_bytes, low=0)


class Session(msgspec.Struct, frozen=True):
    """One session as of its last use. `in_flight` counts requests that run now."""

    key: str
    last_use_s: float
    prefix_tokens: int = 0
    kv_bytes: int = 0
    requests: int = 0
    in_flight: int = 0


class Eviction(msgspec.Struct, frozen=True):
    """A session to forget; its prefix need not be kept."""

    session: Session
    reason: EvictionReason


class SessionTotals(msgspec.Struct, frozen=True):
    """`active` sessions have a request in flight. Counters only grow."""

    tracked: int
    active: int
    kv_bytes: int
    evictions: dict[EvictionReason, int]
    reused: int
    untracked: int
    trimmed: int


class SessionTable:
    """Least recently used first. Not thread-safe; moments are handed in and do not go back."""

    def __init__(self, config: SessionConfig) -> None:
        self._config = config
        # In order of last use; those in flight are kept apart, as they cannot be evicted.
        self._idle: OrderedDict[str, Session] = OrderedDict()
        self._active: dict[str, Session] = {}
        self._kv_bytes = 0
        self._evictions: dict[EvictionReason, int] = {"idle": 0, "count": 0, "pressure": 0}
        self._reused = 0
        self._untracked = 0
        self._trimmed = 0

    def __len__(self) -> int:
        return len(self._idle) + len(self._active)

    def get(self, key: str) -> Session | None:
        return self._active.get(key) or self._idle.get(key)

    def begin(self, key: str, now_s: float) -> tuple[Session | None, tuple[Eviction, ...]]:
        """A request of this session starts; call `end` once it is over if a session came back.

        Where the table is full of active sessions, the answer is None: served, not tracked.
        """
        evicted = self.evict_idle(now_s)
        known = self.get(key)
        if known is None and len(self) >= self._config.max_sessions:
            if not self._idle:
                self._untracked += 1
                return None, evicted
            evicted = (*evicted, self._evict_oldest("count"))
        if known is None:
            known = Session(key, now_s)
        else:
            self._idle.pop(key, None)
            self._reused += 1
        session = msgspec.structs.replace(
            known, last_use_s=now_s, requests=known.requests + 1, in_flight=known.in_flight + 1
        )
        self._active[key] = session
        return session, evicted

    def end(self, key: str, now_s: float, prefix_tokens: int, kv_bytes: int) -> Session:
        """A request is over, and left `prefix_tokens` in `kv_bytes` that could be kept.

        What is over the session's limit is trimmed: the session that comes back says how much of
        the prefix, from its start, may be kept. Raises KeyError when none is in flight.
        """
        known = self._active.pop(key)
        limit = self._config.max_session_kv_bytes
        if limit is not None and kv_bytes > limit:
            prefix_tokens = prefix_tokens * limit // kv_bytes
            kv_bytes = limit
            self._trimmed += 1
        self._kv_bytes += kv_bytes - known.kv_bytes
        session = Session(key, now_s, prefix_tokens, kv_bytes, known.requests, known.in_flight - 1)
        if session.in_flight:
            self._active[key] = session
        else:
            self._idle[key] = session
        return session

    def evict_idle(self, now_s: float) -> tuple[Eviction, ...]:
        """Forget those unused for `idle_s`."""
        evicted: list[Eviction] = []
        while self._idle:
            oldest = next(iter(self._idle.values()))
            if now_s - oldest.last_use_s < self._config.idle_s:
                break
            evicted.append(self._evict_oldest("idle"))
        return tuple(evicted)

    def evict_for(self, wanted_bytes: int) -> tuple[Eviction, ...]:
        """Forget the least recently used until `wanted_bytes` of KV come free, or none is left.

        Sessions without KV are passed over: forgetting them frees nothing.
        """
        evicted: list[Eviction] = []
        freed = 0
        for key in list(self._idle):
            if freed >= wanted_bytes:
                break
            if self._idle[key].kv_bytes:
                eviction = self._evict(key, "pressure")
                freed += eviction.session.kv_bytes
                evicted.append(eviction)
        return tuple(evicted)

    def lost(self) -> None:
        """The cache is gone, as after a restart: the sessions go on and have nothing in it."""
        for table in (self._idle, self._active):
            for key, session in table.items():
                table[key] = msgspec.structs.replace(session, prefix_tokens=0, kv_bytes=0)
        self._kv_bytes = 0

    def totals(self) -> SessionTotals:
        return SessionTotals(
            tracked=len(self),
            active=len(self._active),
            kv_bytes=self._kv_bytes,
            evictions=dict(self._evictions),
            reused=self._reused,
            untracked=self._untracked,
            trimmed=self._trimmed,
        )

    def _evict_oldest(self, reason: EvictionReason) -> Eviction:
        return self._evict(next(iter(self._idle)), reason)

    def _evict(self, key: str, reason: EvictionReason) -> Eviction:
        session = self._idle.pop(key)
        self._kv_bytes -= session.kv_bytes
        self._evictions[reason] += 1
        return Eviction(session, reason)
