"""How well the built-in model talks: harmony, answers, calls, on questions it was never trained on.

    python benchmarks/tiny_eval.py                      # prints a table
    python benchmarks/tiny_eval.py --out benchmarks/results/2025-01-01-tiny.md
    python benchmarks/tiny_eval.py --wrong              # and every wrong answer

Each case runs through the server's own renderer, engine and parser, greedily and at temperature
0.7. `harmony`: the tokens are an optional analysis message and then exactly one final message or
one call with JSON arguments, closed by the right token. `calls`: of those who should call, those who
do, a tool that is offered, with arguments that its schema allows. `right`: the answer, or the tool and all
arguments, are exactly those expected. What is held out, and how, says `tiny_cases.py`.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import sys
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

import torch
from jsonschema import Draft202012Validator

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.tiny_cases import Case, all_cases  # noqa: E402

from gpt_oss_server.engine.core import EngineCore  # noqa: E402
from gpt_oss_server.engine.spec import EngineSpec  # noqa: E402
from gpt_oss_server.harmony.formats import open_chat_format  # noqa: E402
from gpt_oss_server.ports import ChatFormat  # noqa: E402
from gpt_oss_server.types import Job, SamplingParams  # noqa: E402

TINY = ROOT / "src" / "gpt_oss_server" / "models" / "tiny"
TODAY = date(2026, 3, 9)
MAX_TOKENS = 200

_ANALYSIS = r"(?:<\|channel\|>analysis<\|message\|>[^|]*<\|end\|><\|start\|>assistant)?"
_FINAL = r"<\|channel\|>final<\|message\|>(?P<final>.+)<\|return\|>"
_CALL = (
    r"<\|channel\|>commentary to=functions\.(?P<name>[\w-]+) <\|constrain\|>json<\|message\|>"
    r"(?P<arguments>\{.*\})<\|call\|>"
)
_HARMONY = re.compile(f"{_ANALYSIS}(?:{_FINAL}|{_CALL})", re.DOTALL)


@dataclass(frozen=True)
class Outcome:
    """What the model said to one case. `well_formed` includes that arguments are JSON,
    `valid_call` that the tool is offered and its schema allows the arguments."""

    case: Case
    text: str
    tokens: int
    well_formed: bool
    right: bool
    valid_call: bool = False


def is_valid_call(case: Case, name: str, arguments: object) -> bool:
    """Whether the case offers such a tool with such arguments."""
    schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in case.tools}
    return name in schemas and Draft202012Validator(schemas[name]).is_valid(arguments)


def judge(case: Case, text: str, tokens: int) -> Outcome:
    """Compare what was said with what was expected."""
    match = _HARMONY.fullmatch(text)
    if match is None:
        return Outcome(case, text, tokens, well_formed=False, right=False)
    if match["name"] is None:
        return Outcome(case, text, tokens, True, right=match["final"] == case.content)
    try:
        arguments = json.loads(match["arguments"])
    except ValueError:
        return Outcome(case, text, tokens, well_formed=False, right=False)
    return Outcome(
        case,
        text,
        tokens,
        True,
        right=(match["name"], arguments) == case.call,
        valid_call=is_valid_call(case, match["name"], arguments),
    )


def answers(
    core: EngineCore, chat: ChatFormat, cases: list[Case], temperature: float
) -> list[Outcome]:
    """Run all cases through the engine, together."""
    said: dict[int, list[int]] = {n: [] for n in range(len(cases))}
    for n, case in enumerate(cases):
        prompt = chat.render_chat(
            case.messages, reasoning_effort=case.effort, tools=list(case.tools) or None
        )
        sampling = SamplingParams(
            max_tokens=MAX_TOKENS,
            temperature=temperature,
            seed=n,
            stop_token_ids=chat.stop_token_ids,
        )
        core.submit(n, Job(id=str(n), prompt=prompt, sampling=sampling))
    while core.has_work:
        events = core.step()
        if events.failures:
            raise SystemExit(f"the engine failed: {events.failures[0][1]}")
        for key, delta in events.deltas:
            said[key].extend(delta.token_ids)
    return [judge(case, chat.decode(said[n]), len(said[n])) for n, case in enumerate(cases)]


def examine(
    folder: Path, cases: list[Case], temperatures: tuple[float, ...], threads: int = 1
) -> dict[float, list[Outcome]]:
    """All outcomes by temperature."""
    torch.set_num_threads(threads)
    core = EngineCore(EngineSpec(folder=str(folder), device="cpu", max_num_seqs=32))
    chat = open_chat_format(folder, today=lambda: TODAY)
    return {t: answers(core, chat, cases, t) for t in temperatures}


def table(found: dict[float, list[Outcome]]) -> list[str]:
    """Markdown: one row per kind of case and temperature."""
    lines = [
        "| asked | temperature | cases | harmony | calls | right |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for temperature, outcomes in found.items():
        kinds: dict[str, list[Outcome]] = defaultdict(list)
        for outcome in outcomes:
            kinds[outcome.case.kind].append(outcome)
            kinds["**all**"].append(outcome)
        whole = kinds.pop("**all**")
        for kind, some in [*kinds.items(), ("**all**", whole)]:
            harmony = sum(o.well_formed for o in some) / len(some)
            right = sum(o.right for o in some) / len(some)
            calls = [o.valid_call for o in some if o.case.call is not None]
            called = f"{sum(calls) / len(calls):.1%}" if calls else ""
            lines.append(
                f"| {kind} | {temperature} | {len(some)} | {harmony:.1%} | {called} | {right:.1%} |"
            )
    return lines


def main() -> None:
    """Examine the model and print or write what was found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=TINY)
    parser.add_argument("--out", type=Path, help="write the table here, as Markdown")
    parser.add_argument("--size", type=int, default=60, help="scales the generated kinds")
    parser.add_argument("--greedy-only", action="store_true")
    parser.add_argument("--wrong", action="store_true", help="print every wrong answer")
    options = parser.parse_args()
    cases = all_cases(options.size)
    temperatures = (0.0,) if options.greedy_only else (0.0, 0.7)
    found = examine(options.folder, cases, temperatures)
    lines = table(found)
    print("\n".join(lines))
    if options.wrong:
        for outcome in (o for some in found.values() for o in some if not o.right):
            wanted = outcome.case.content or outcome.case.call
            asked = outcome.case.messages[-1]["content"]
            print(
                f"\n[{outcome.case.kind}] {asked!r}\n  wanted {wanted!r}\n  said   {outcome.text!r}"
            )
    if options.out:
        command = " ".join(["python", "benchmarks/tiny_eval.py", *sys.argv[1:]])
        when = datetime.now(UTC).date().isoformat()
        head = [
            f"# The built-in model's evaluation, {when}",
            "",
            f"`{command}` on {platform.machine()}, Python {platform.python_version()}, torch "
            f"{torch.__version__}; weights {(options.folder / 'model.safetensors').stat().st_size:,} "
            "bytes.",
            "",
            "Questions, frames, names, texts and ranges that training never saw; see "
            "`benchmarks/tiny_cases.py`.",
            "",
        ]
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text("\n".join([*head, *lines]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
