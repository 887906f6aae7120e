"""What is said of a workload, and the digest by which it is known again."""

from __future__ import annotations

import hashlib

from sim_builders import workload

from gpt_oss_server.simulate.workload.facts import digest, workload_facts
from gpt_oss_server.simulate.workload.made import make_workload
from gpt_oss_server.simulate.workload.requests import Problems, Workload


def test_lengths_and_problems() -> None:
    """Quantiles, means and sums of tokens; what was wrong with the input, with examples."""
    problems = Problems()
    problems.add("negative input_tokens", "line 3")
    asked = workload((0.0, 100, 10), (5.0, 200, 30), (10.0, 300, 20))
    facts = workload_facts(Workload("t", asked.requests, problems=problems))
    assert (facts["requests"], facts["duration_s"], facts["requests_per_s"]) == (3, 10.0, 0.2)
    assert facts["input_tokens"] == {
        "p50": 200.0,
        "p90": 280.0,
        "p99": 298.0,
        "mean": 200.0,
        "most": 300.0,
        "total": 600.0,
    }
    assert facts["output_tokens"]["mean"] == 20.0
    assert facts["problems"] == {"negative input_tokens": 1}
    assert facts["problem_lines"] == ["1 × negative input_tokens (line 3)"]


def test_an_empty_workload_has_no_lengths() -> None:
    """Nothing is made up for it."""
    facts = workload_facts(workload())
    assert (facts["requests"], facts["input_tokens"], facts["with_prefix_hashes"]) == (0, None, 0)


def test_the_digest_is_of_what_is_played() -> None:
    """Equal requests, equal digest; any other field, load or unit, another."""
    one = make_workload("turns", requests_per_s=2, duration_s=60, seed=1)
    again = make_workload("turns", requests_per_s=2, duration_s=60, seed=1)
    assert digest(one) == digest(again)
    others = [
        make_workload("turns", requests_per_s=2, duration_s=60, seed=2),
        one.at_load(1.01),
        one.first(len(one.requests) - 1),
        Workload(one.name, one.requests, unit_tokens=256),
        Workload(one.name, tuple(r._replace(units=()) for r in one.requests)),
    ]
    assert len({digest(one), *map(digest, others)}) == 6
    said = b"512\n(0.0, 1, 2, (), (), 0, '', 5)\n"
    assert digest(workload((0.0, 1, 2))) == hashlib.sha256(said).hexdigest()
