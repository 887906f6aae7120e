"""The line that says how far a simulation is."""

from __future__ import annotations

import io

from gpt_oss_server.commands.progress import Progress


class Terminal(io.StringIO):
    """Something that claims to be one."""

    def isatty(self) -> bool:
        return True


class Watch:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def lines(terminal: Terminal) -> list[str]:
    """What stood on the line, one after the other."""
    return terminal.getvalue().split("\r\x1b[K")[1:]


def test_share_bar_and_time_that_is_left() -> None:
    """A quarter took ten seconds: thirty are left; minutes where it is long."""
    terminal, watch = Terminal(), Watch()
    progress = Progress(terminal, watch)
    progress.begin("least_request")
    watch.now_s += 10
    progress.tell(250, 1000)
    watch.now_s += 80
    progress.tell(300, 1000)
    progress.close()
    assert lines(terminal) == [
        f"least_request [{'.' * 30}]   0 %",
        f"least_request [{'#' * 7}{'.' * 23}]  25 %, 30 s left",
        f"least_request [{'#' * 9}{'.' * 21}]  30 %, 3 min 30 s left",
        "",
    ]


def test_it_does_not_flicker() -> None:
    """Ten times a second is enough."""
    terminal, watch = Terminal(), Watch()
    progress = Progress(terminal, watch)
    progress.begin("a")
    for done in range(100):
        watch.now_s += 0.01
        progress.tell(done, 100)
    assert 9 <= len(lines(terminal)) <= 11


def test_each_load_of_a_sweep_has_its_own_time() -> None:
    """The load is named beside the policy; what is left is reckoned from its beginning."""
    terminal, watch = Terminal(), Watch()
    progress = Progress(terminal, watch)
    progress.begin("triggers")
    watch.now_s += 50
    progress.tell_load(1.35, 1000, 4000)
    watch.now_s += 5
    progress.tell_load(1.35, 2000, 4000)
    watch.now_s += 5
    progress.tell_load(1.8225, 1000, 4000)
    assert [line.partition(" [")[0] for line in lines(terminal)][1:] == [
        "triggers, load 1.35×",
        "triggers, load 1.35×",
        "triggers, load 1.82×",
    ]
    assert lines(terminal)[2].endswith("50 %, 5 s left")


def test_nothing_is_written_elsewhere() -> None:
    """Into a file or a pipe comes no bar."""
    out = io.StringIO()
    progress = Progress(out, Watch())
    progress.begin("a")
    progress.tell(1, 2)
    progress.close()
    assert out.getvalue() == ""
