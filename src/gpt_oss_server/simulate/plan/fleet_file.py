"""A fleet as a file that describes it, and as the commands that start it.

Knows: the file's fields, the flags of this server and of vLLM, which GPUs of which machine each
replica gets. Does not know: whether the fleet is any good, whether the GPUs are there.

The file:

    model: 120b
    policy: {name: earliest_completion}
    slo: 2048:2:0.05,inf:10:0.05
    pools:
      - name: h100-tp1
        gpu: h100
        gpu_mode: single          # as serve's --gpu-mode
        gpus_per_replica: 1
        replicas: 4
        engine: {max_num_seqs: 256, max_batch_tokens: 8192, prefill_order: shortest}
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import yaml

from gpt_oss_server.simulate.cost.layout import EngineSettings, Replica, Shape
from gpt_oss_server.simulate.fleet.pools import Fleet
from gpt_oss_server.simulate.plan.rules import Rule

FIRST_PORT = 8001


@dataclass(frozen=True)
class Start:
    """The command for one replica: on which machine of which GPUs, at which port."""

    machine: str
    port: int
    command: str


def mode_of(shape: Shape) -> str | None:
    """As `serve --gpu-mode` calls it; None where it has no name for it."""
    if shape.tp > 1 and shape.pp > 1:
        return None
    if shape.gpus == 1:
        return "single"
    return "tensor" if shape.tp > 1 else "pipeline"


def fleet_document(
    model: str, fleet: Fleet, rule: Rule, slo: str, engine: str = "own"
) -> dict[str, Any]:
    """The file's content."""
    policy: dict[str, Any] = {"name": rule.name}
    if rule.bounds:
        policy["bounds"] = list(rule.bounds)
    pools: list[dict[str, Any]] = []
    for pool in fleet.pools:
        shape, settings = pool.replica.shape, pool.replica.settings
        described: dict[str, Any] = {
            "name": pool.name or shape.name,
            "gpu": shape.gpu.name,
            "gpu_mode": mode_of(shape),
            "gpus_per_replica": shape.gpus,
            "replicas": pool.count,
            "engine": {
                "max_num_seqs": settings.max_num_seqs,
                "max_batch_tokens": settings.max_batch_tokens,
                "prefill_order": settings.prefill_order,
                **(_queue(settings) if engine == "own" else {}),
            },
        }
        if engine != "own":
            described["tensor_parallel"] = shape.tp
            described["pipeline_parallel"] = shape.pp
        pools.append(described)
    return {"model": model, "served_by": engine, "policy": policy, "slo": slo, "pools": pools}


def pools_text(fleet: Fleet, files: Mapping[str, str] = MappingProxyType({})) -> str:
    """As `simulate --pools` takes it: `4xtp1@h100+2xtp2@h100`. `files` has those of types that are
    not packaged, by name."""
    parts = []
    for pool in fleet.pools:
        gpu = pool.replica.shape.gpu.name
        parts.append(f"{pool.count}x{_ranks_text(pool.replica)}@{files.get(gpu, gpu)}")
    return "+".join(parts)


def _ranks_text(replica: Replica) -> str:
    shape = replica.shape
    parts = ([f"tp{shape.tp}"] if shape.tp > 1 or shape.pp == 1 else []) + (
        [f"pp{shape.pp}"] if shape.pp > 1 else []
    )
    return "-".join(parts)


def fleet_yaml(document: dict[str, Any], comments: Sequence[str] = ()) -> str:
    """The document as text, comments on top."""
    head = "".join(f"# {line}\n" for comment in comments for line in comment.splitlines())
    return head + yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=100)


def starts(model: str, fleet: Fleet, machine_gpus: int, engine: str = "own") -> list[Start]:
    """A command per replica, machine by machine, the largest replicas first, so that each lies
    within one machine."""
    found = []
    port = FIRST_PORT
    for replica, machine, devices in _placed(fleet, machine_gpus):
        command = _vllm(model, replica, port) if engine == "vllm" else _serve(model, replica, port)
        visible = ",".join(str(device) for device in devices)
        found.append(Start(machine, port, f"CUDA_VISIBLE_DEVICES={visible} {command}"))
        port += 1
    return found


_NGINX = {"round_robin": "", "random": " random;", "power_of_two": " random two least_conn;"}
"""How nginx calls what it does other than by fewest requests."""


def balancer_lines(ports: Sequence[int], rule: str = "least_request") -> list[str]:
    """What to put in front of replicas of one machine today, where any balancer will do: nginx. By
    fewest requests, unless `rule` is another that it knows."""
    servers = "".join(f" server 127.0.0.1:{port};" for port in ports)
    return [
        f"upstream replicas {{{_NGINX.get(rule, ' least_conn;')}{servers} }}",
        "server { listen 8000; location / { proxy_pass http://replicas; proxy_buffering off;",
        "         proxy_http_version 1.1; proxy_set_header Connection ''; "
        "proxy_read_timeout 1h; } }",
    ]


def _placed(fleet: Fleet, machine_gpus: int) -> Iterator[tuple[Replica, str, range]]:
    """Replicas with their machine and GPUs there: first fit, by falling size, which never wastes a
    machine's GPUs where sizes are powers of two."""
    room: dict[str, list[int]] = {}
    replicas = [pool.replica for pool in fleet.pools for _ in range(pool.count)]
    for replica in sorted(replicas, key=lambda one: -one.shape.gpus):
        gpu, size = replica.shape.gpu.name, replica.shape.gpus
        machines = room.setdefault(gpu, [])
        place = next((i for i, used in enumerate(machines) if used + size <= machine_gpus), None)
        if place is None:
            machines.append(0)
            place = len(machines) - 1
        first = machines[place]
        machines[place] += size
        yield replica, f"{gpu} machine {place + 1}", range(first, first + size)


def _queue(settings: EngineSettings) -> dict[str, float]:
    """The bounds of the queue before an engine, by this server's names, where they were given."""
    bounds = {"max_queue": settings.max_waiting, "max_wait_s": settings.max_wait_s}
    return {name: bound for name, bound in bounds.items() if bound is not None}


def _serve(model: str, replica: Replica, port: int) -> str:
    settings = replica.settings
    words = ["gpt-oss-server", "serve", "--model", model]
    words += ["--gpu-mode", mode_of(replica.shape) or "single"]
    if replica.shape.gpus > 1:
        words += ["--gpus", str(replica.shape.gpus)]
    words += ["--port", str(port), "--max-num-seqs", str(settings.max_num_seqs)]
    words += ["--max-batch-tokens", str(settings.max_batch_tokens)]
    words += ["--prefill-order", settings.prefill_order]
    for name, bound in _queue(settings).items():
        words += ["--" + name.replace("_", "-"), str(bound)]
    return shlex.join(words)


def _vllm(model: str, replica: Replica, port: int) -> str:
    settings, shape = replica.settings, replica.shape
    words = ["vllm", "serve", model, "--port", str(port)]
    if shape.tp > 1:
        words += ["--tensor-parallel-size", str(shape.tp)]
    if shape.pp > 1:
        words += ["--pipeline-parallel-size", str(shape.pp)]
    words += ["--max-num-seqs", str(settings.max_num_seqs)]
    words += ["--max-num-batched-tokens", str(settings.max_batch_tokens)]
    return shlex.join(words)
