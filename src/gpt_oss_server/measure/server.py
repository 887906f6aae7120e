"""Who answers at an address, and what it says of its limits.

Knows: where this server, vLLM and plain OpenAI-compatible servers say what they are. Does not
know: what the limits are for. What is not said stays None; nothing is guessed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgspec

from gpt_oss_server.errors import StartupError
from gpt_oss_server.measure.connection import Address, Connection
from gpt_oss_server.simulate.calibrate.served import OWN, Served

TIMEOUT_S = 20.0
_CACHE_CONFIG = re.compile(r"^vllm:cache_config_info\{(.*)\}", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')
_GAUGE = re.compile(r"^vllm:num_requests_(?:running|waiting)(?:\{[^}]*\})? (\S+)$", re.MULTILINE)


async def look(address: Address, model: str | None, admin_key: str | None) -> tuple[Served, str]:
    """What the server says of itself, and a remark on what it does not (empty: nothing).

    Args:
        model: the name requests will ask for; None: the first that the server lists.
        admin_key: for this server's bundle, which tells its settings; without one it answers
            clients on its own machine.

    Raises:
        StartupError: nobody answers there, or not as an OpenAI-compatible server.
    """
    connection = Connection(address)
    try:
        return await _looked(address, model, admin_key, connection)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise StartupError(
            f"what {address.url} says of itself is not understood ({type(error).__name__}: {error})"
        ) from error
    finally:
        connection.close()


async def _looked(
    address: Address, model: str | None, admin_key: str | None, connection: Connection
) -> tuple[Served, str]:
    listed = await _models(connection, address)
    name = model or str(listed[0].get("id", ""))
    chosen = next((one for one in listed if one.get("id") == name), listed[0])
    served = Served("unknown", await _version(connection), name)
    longest = chosen.get("max_model_len")
    if isinstance(longest, int) and longest > 0:
        served = replace(served, max_model_len=longest)
    stats = await _object(connection, "/stats")
    if stats is not None and "gpu_routing" in stats:
        return await _own(served, stats, address, admin_key, connection)
    return await _other(served, connection), ""


async def _models(connection: Connection, address: Address) -> list[dict[str, Any]]:
    where = address.url
    status, body = await connection.get("/v1/models", TIMEOUT_S)
    if status == 0:
        raise StartupError(f"no server at {where}: {body.decode(errors='replace')}")
    if status in (401, 403):
        raise StartupError(f"{where} wants a key (status {status}): give --api-key")
    content = _decoded(body)
    listed = content.get("data") if isinstance(content, dict) else None
    if status != 200 or not isinstance(listed, list) or not listed:
        raise StartupError(f"{where} lists no models (status {status}): not an OpenAI server?")
    return [one for one in listed if isinstance(one, dict)] or [{}]


async def _version(connection: Connection) -> str:
    content = await _object(connection, "/version") or {}
    return str(content.get("version", ""))


async def _own(
    served: Served,
    stats: Mapping[str, Any],
    address: Address,
    admin_key: str | None,
    connection: Connection,
) -> tuple[Served, str]:
    """This server: pools from `/memory_stats`, limits and settings from its bundle."""
    engine = stats.get("engine") or {}
    placement = stats.get("placement") or {}
    ranks = placement.get("ranks") or [{}]
    served = replace(
        served,
        server=OWN,
        admission="reserve",
        prefill_order="shortest",
        gpu_mode=placement.get("gpu_mode"),
        gpus=len({rank.get("device") for rank in ranks}),
        device=str(ranks[0].get("device", "")) or None,
        micro_batches=placement.get("micro_batches") or 1,
        busy=int(engine.get("running", 0)) + int(engine.get("waiting", 0)),
    )
    memory = await _object(connection, "/memory_stats") or {}
    kv = memory.get("kv") or {}
    groups = [group for group in kv.get("groups", []) if isinstance(group, dict)]
    pools = {str(group["name"]): int(group["blocks_total"]) for group in groups}
    growing = [int(group["blocks_total"]) for group in groups if group.get("window") is None]
    slots = ((memory.get("admission") or {}).get("blocks_total") or {}).get("slots")
    served = replace(
        served,
        block_size=kv.get("block_size"),
        pools=pools,
        kv_blocks=min(growing) if growing else None,
        max_num_seqs=slots,
    )
    bundle = await _bundle(address, admin_key)
    if bundle is None:
        remark = (
            "the server's bundle is closed to this client: its order of prefills, tokens per step "
            "and admission are taken to be the defaults (--admin-key opens it)"
        )
        return served, remark
    return _with_settings(served, bundle), ""


async def _bundle(address: Address, admin_key: str | None) -> Mapping[str, Any] | None:
    connection = Connection(replace(address, key=admin_key))
    try:
        return await _object(connection, "/admin/debug/bundle")
    finally:
        connection.close()


def _with_settings(served: Served, bundle: Mapping[str, Any]) -> Served:
    info = (bundle.get("engine") or {}).get("info") or {}
    values = (bundle.get("configuration") or {}).get("values") or {}
    probed = (bundle.get("gpus") or {}).get("gpus") or [{}]
    name = (probed[0].get("reading") or {}).get("name")
    return replace(
        served,
        max_model_len=info.get("max_model_len", served.max_model_len),
        max_num_seqs=info.get("max_num_seqs", served.max_num_seqs),
        max_batch_tokens=info.get("max_batch_tokens"),
        prefill_order=values.get("prefill_order", served.prefill_order),
        oldest_share=values.get("prefill_oldest_share", served.oldest_share),
        prefix_caching=values.get("prefix_caching", served.prefix_caching),
        admission_mode=values.get("admission_mode", served.admission_mode),
        gpu_name=str(name) if name and served.device != "cpu" else None,
    )


async def _other(served: Served, connection: Connection) -> Served:
    """vLLM, or whatever names its gauges alike: the pool from `/metrics`."""
    status, body = await connection.get("/metrics", TIMEOUT_S)
    text = body.decode(errors="replace") if status == 200 else ""
    found = _CACHE_CONFIG.search(text)
    if found is None:
        return served
    labels = dict(_LABEL.findall(found.group(1)))
    busy = sum(float(value) for value in _GAUGE.findall(text))
    return replace(
        served,
        server="vllm",
        block_size=_whole(labels.get("block_size")),
        kv_blocks=_whole(labels.get("num_gpu_blocks")),
        prefix_caching=labels.get("enable_prefix_caching", "True") == "True",
        busy=int(busy),
    )


async def _object(connection: Connection, path: str) -> Mapping[str, Any] | None:
    status, body = await connection.get(path, TIMEOUT_S)
    content = _decoded(body) if status == 200 else None
    return content if isinstance(content, dict) else None


def _decoded(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except msgspec.DecodeError:
        return None


def _whole(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdigit() else None
