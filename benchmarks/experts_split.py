"""A mixture over tensor ranks: some experts whole on each, or a slice of every expert?

    python benchmarks/experts_split.py --out benchmarks/results

Times, one after the other on one thread, what each rank of 2 and 4 computes of one gpt-oss mixture
(32 experts of which 4 per token), packed as the server packs it on a CPU. A step waits for the
slowest rank, so its time counts, as a share of the time of the whole mixture: 1/ranks is ideal.
Routing is uniform, or skewed as trained routers are (experts chosen in proportion to 1/place).
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from transformers import GptOssConfig
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts

from gpt_oss_server.engine.packed import PackedExperts
from gpt_oss_server.engine.ranks.comms import Comms
from gpt_oss_server.engine.ranks.modules import ChosenExperts, SlicedExperts
from gpt_oss_server.engine.ranks.shard import ExpertSplit, expert_cuts

EXPERTS, PER_TOKEN, HIDDEN = 32, 4, 720
TOKENS = (1, 4, 16, 256)
RANKS = (2, 4)
ROUTINGS = ("uniform", "skewed")


def mixture() -> Any:
    """The experts of one layer of gpt-oss-20b, a quarter as wide."""
    config = GptOssConfig(
        hidden_size=HIDDEN,
        intermediate_size=HIDDEN,
        num_local_experts=EXPERTS,
        num_experts_per_tok=PER_TOKEN,
    )
    torch.manual_seed(0)
    experts = GptOssExperts(config)
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    return experts.requires_grad_(False)


def rank_of(whole: Any, split: ExpertSplit, rank: int, ranks: int) -> Any:
    """What one rank runs, packed."""
    parameters = dict(whole.named_parameters())
    cuts = expert_cuts(
        {name: parameter.shape for name, parameter in parameters.items()},
        transposed=True,
        concatenated=False,
        split=split,
        tp_rank=rank,
        tp=ranks,
    )
    part = copy.copy(whole)
    part._parameters = {
        name: torch.nn.Parameter(cuts[name].of(parameter).contiguous(), requires_grad=False)
        for name, parameter in parameters.items()
    }
    packed, alone = PackedExperts(part), Comms.alone(torch.device("cpu"))
    if split == "width":
        return SlicedExperts(packed, alone)
    count = EXPERTS // ranks
    return ChosenExperts(packed, alone, first=rank * count, count=count)


def routed(tokens: int, routing: str, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Experts and their weights for each token; which experts are popular depends on the seed."""
    generator = torch.Generator().manual_seed(seed)
    popularity = torch.ones(EXPERTS)
    if routing == "skewed":
        popularity = 1 / (1 + torch.randperm(EXPERTS, generator=generator).float())
    ids = torch.multinomial(popularity.expand(tokens, -1), PER_TOKEN, generator=generator)
    return ids, torch.full((tokens, PER_TOKEN), 1 / PER_TOKEN)


def slowest_s(
    modules: list[Any], tokens: int, routing: str, repeats: int
) -> tuple[float, torch.Tensor]:
    """Median over routings of the slowest module's time; and the last sum of results."""
    times = []
    total = torch.zeros(tokens, HIDDEN)
    for repeat in range(-1, repeats):
        ids, weights = routed(tokens, routing, repeat + 1)
        hidden = torch.randn(tokens, HIDDEN, generator=torch.Generator().manual_seed(repeat + 1))
        each, parts = [], []
        for module in modules:
            began = time.perf_counter()
            parts.append(module(hidden, ids, weights))
            each.append(time.perf_counter() - began)
        total = torch.stack(parts).sum(0)
        if repeat >= 0:
            times.append(max(each))
    return statistics.median(times), total


def measure(repeats: int) -> list[dict[str, Any]]:
    rows = []
    source = mixture()
    whole = PackedExperts(source)
    splits: tuple[ExpertSplit, ...] = ("width", "count")
    parts = {
        (split, ranks): [rank_of(source, split, rank, ranks) for rank in range(ranks)]
        for split in splits
        for ranks in RANKS
    }
    for routing in ROUTINGS:
        for tokens in TOKENS:
            base, expected = slowest_s([whole], tokens, routing, repeats)
            row: dict[str, Any] = {"routing": routing, "tokens": tokens, "whole_ms": base * 1e3}
            for (split, ranks), modules in parts.items():
                taken, total = slowest_s(modules, tokens, routing, repeats)
                torch.testing.assert_close(total, expected, atol=1e-4, rtol=1e-3)
                row[f"{split} {ranks}"] = taken / base
            rows.append(row)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    keys = [f"{split} {ranks}" for ranks in RANKS for split in ("width", "count")]
    names = [f"{key.split()[1]} ranks, by {key.split()[0]}" for key in keys]
    lines = [
        "| routing | tokens | whole ms | " + " | ".join(names) + " |",
        "|---" * (3 + len(keys)) + "|",
    ]
    for row in rows:
        shares = " | ".join(f"{row[key]:.2f}" for key in keys)
        lines.append(f"| {row['routing']} | {row['tokens']} | {row['whole_ms']:.2f} | {shares} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--out", type=Path, help="folder for a dated .json and .md")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with torch.inference_mode():
        rows = measure(asked.repeats)
    text = table(rows)
    print(text)
    if asked.out:
        now = datetime.now(UTC)
        stem = asked.out / f"{now:%Y-%m-%d}-experts-split"
        machine = {"cpus": os.cpu_count(), "torch": torch.__version__, "threads": 1}
        stem.with_suffix(".json").write_text(
            json.dumps({"at": f"{now:%Y-%m-%d}", "machine": machine, "rows": rows}, indent=1)
        )
        head = (
            "# Experts over ranks: by width or by count\n\nTime of the slowest rank as a share of "
            f"the whole mixture's ({EXPERTS} experts of {HIDDEN} by {HIDDEN}, {PER_TOKEN} per "
            f"token, float32, one thread, torch {torch.__version__}, medians of {asked.repeats} "
            "routings).\n\n"
        )
        stem.with_suffix(".md").write_text(head + text + "\n")


if __name__ == "__main__":
    main()
