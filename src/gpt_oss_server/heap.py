"""What the cyclic garbage collector is told once a process is up.

Knows: CPython's collector. Does not know: what is on the heap.
"""

from __future__ import annotations

import gc

_YOUNG_OBJECTS = 10_000
_MIDDLE_ROUNDS = 20
_OLD_ROUNDS = 20


def settle_heap() -> None:
    """Take what was made while starting out of every later collection.

    A full collection visits every container that is alive, and meanwhile nothing else runs: no
    token is sent, no step begun. After a start these are modules, classes, compiled schemas,
    vocabularies and the model's own objects: hundreds of thousands that are never garbage. A
    request that makes many objects at once (a body of megabytes) sets off several full
    collections; with the start's objects among them, one such request stalled all others for
    745 ms, without them for 42 ms.

    Fewer collections of the young generation too: a request makes far more than the default 700
    containers, and almost all of them die by reference count.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS, _MIDDLE_ROUNDS, _OLD_ROUNDS)
