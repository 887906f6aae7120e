"""What is alive after the start is looked at by no later collection."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import gc
from gpt_oss_server.heap import settle_heap

class Node:
    pass

made_before = Node()
rubbish = Node()
rubbish.itself = rubbish
del rubbish
settle_heap()
assert not any(isinstance(o, Node) for o in gc.get_objects()), "still looked at"
made_after = Node()
assert sum(isinstance(o, Node) for o in gc.get_objects()) == 1
assert gc.isenabled()
print(gc.get_freeze_count() > 1000, gc.get_threshold())
gc.unfreeze()
print(sum(isinstance(o, Node) for o in gc.get_objects()))
"""


def test_the_start_s_objects_are_left_out() -> None:
    """They are frozen, rubbish among them is not kept, and what comes later is collected."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["True (10000, 20, 20)", "2"]
