"""The experts' kernels on one GPU: right, and how near to what the machine can move and multiply.

    python benchmarks/gpu/experts.py                 # about two minutes on an H100; 8 GiB
    python benchmarks/gpu/experts.py --experts 128   # the shape of gpt-oss-120b's mixtures; 25 GiB
    python benchmarks/gpu/experts.py --sweep --tokens 1 64 8192   # other tiles too, ten minutes
    TRITON_INTERPRET=1 python benchmarks/gpu/experts.py --tiny   # without a GPU: the script only

Needs torch, transformers and triton, and no network. Random mixtures of gpt-oss-20b's shape, as
bfloat16 and as MXFP4. Each case is first compared with float32 on fresh inputs. Then the mixtures
of LAYERS layers, so that no cache holds what the next reads, are captured in one CUDA graph, as
serving does, and replayed; times are medians by device events, per layer. Each kernel is timed so
by itself too. Bytes are those that must be read: of touched experts, once. The same layer by
transformers (grouped_mm, not captured) stands beside the bfloat16 cases.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from timing import ceilings, seconds
from transformers import GptOssConfig
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssMLP

from gpt_oss_server.engine.experts.modules import (
    KernelExperts,
    KernelMixture,
    Mxfp4KernelExperts,
    PlainKernelExperts,
)
from gpt_oss_server.engine.experts.replace import gate_of
from gpt_oss_server.engine.experts.stored import Mxfp4Experts, widened
from gpt_oss_server.engine.kernels.expert_tuning import ExpertTuning, Tile
from gpt_oss_server.engine.kernels.routing import Routing, route

LARGEST_ERROR = 2e-2
"""(norm of the difference) / (norm of the reference); products of bfloat16 numbers."""
CHECKED_TOKENS = 64
LAYERS = 3
SCALE_BYTE = 120
TABLE = "table"
PARTS = ("router", "up", "down", "combine")
_WARPS_AND_STAGES = ((4, 3), (4, 4), (4, 6), (2, 4))
PLAIN_TRIALS = (
    *(Tile(columns, 128, *rest) for columns in (32, 64) for rest in _WARPS_AND_STAGES),
    *(Tile(128, depth, 4, stages) for depth in (64, 128) for stages in (3, 4)),
    *(Tile(columns, 64, 8, 3, group) for columns in (128, 256) for group in (4, 8, 16)),
    Tile(256, 64, 8, 4, 8),
    Tile(128, 128, 8, 3, 8),
)
MXFP4_TRIALS = (
    *(Tile(64, depth, 4, stages) for depth in (128, 256) for stages in (3, 4, 5)),
    *(Tile(128, depth, 4, stages) for depth in (64, 128, 256) for stages in (2, 3, 4)),
    *(Tile(128, depth, 8, stages, 8) for depth, stages in ((64, 3), (64, 4), (128, 2), (128, 3))),
    Tile(256, 64, 8, 3, 8),
)


@dataclass(frozen=True)
class Shape:
    """One model's mixtures, and where they are."""

    experts: int
    per_token: int
    hidden: int
    width: int
    dtype: torch.dtype
    device: torch.device
    tokens: tuple[int, ...]


def full_shape(experts: int) -> Shape:
    tokens = (1, 2, 4, 8, 16, 32, 64, 128, 256, 1024, 2048, 8192)
    return Shape(experts, 4, 2880, 2880, torch.bfloat16, torch.device("cuda", 0), tokens)


def tiny_shape() -> Shape:
    return Shape(4, 2, 64, 32, torch.float32, torch.device("cpu"), (1, 5, 40))


class Layers:
    """Mixtures of one form. `wide(e)` are the first one's experts in float32: [H, 2 I], [I, H]."""

    def __init__(self, form: str, shape: Shape) -> None:
        self.form, self.shape = form, shape
        self.plain = [self._plain() for _ in range(LAYERS)] if form == "bfloat16" else []
        stored = [] if self.plain else [self._stored() for _ in range(LAYERS)]
        if stored:
            first = stored[0][1]
            self._copies = {
                name: getattr(first, name).clone() for name in dict(first.named_parameters())
            }
        self.mixtures = [
            KernelMixture(mlp.router, PlainKernelExperts(mlp.experts, gate_of(mlp.experts)))
            for mlp in self.plain
        ] + [KernelMixture(router, Mxfp4KernelExperts(experts)) for router, experts in stored]

    def _config(self) -> GptOssConfig:
        shape = self.shape
        return GptOssConfig(
            hidden_size=shape.hidden,
            intermediate_size=shape.width,
            num_local_experts=shape.experts,
            num_experts_per_tok=shape.per_token,
            experts_implementation="grouped_mm",
        )

    def _plain(self) -> Any:
        with torch.device(self.shape.device):
            mlp = GptOssMLP(self._config()).to(self.shape.dtype).requires_grad_(False)
        for name, parameter in mlp.named_parameters():
            parameter.normal_(std=0.02 if "router" not in name else 0.1)
        return mlp

    def _stored(self) -> tuple[Any, Mxfp4Experts]:
        shape = self.shape
        with torch.device("meta"):
            mlp = GptOssMLP(self._config())
        gate = gate_of(mlp.experts)
        if gate is None:
            raise RuntimeError("transformers' activation is not what it was")
        experts = Mxfp4Experts(shape.experts, shape.hidden, shape.width, gate, shape.dtype)
        experts.to_empty(device=shape.device)
        router = mlp.router.to(shape.dtype).to_empty(device=shape.device).requires_grad_(False)
        router.weight.normal_(std=0.1)
        router.bias.zero_()
        for name, parameter in experts.named_parameters():
            if name.endswith("_blocks"):
                parameter.random_(0, 256)
            elif name.endswith("_scales"):
                parameter.fill_(SCALE_BYTE)
            else:
                parameter.normal_(std=0.02)
        return router, experts

    def wide(self, expert: int) -> tuple[torch.Tensor, torch.Tensor]:
        if self.plain:
            first = self.plain[0].experts
            return first.gate_up_proj[expert].float(), first.down_proj[expert].float()
        up, down = (
            widened(
                self._copies[f"{name}_blocks"][expert],
                self._copies[f"{name}_scales"][expert],
                torch.float32,
            ).T
            for name in ("gate_up_proj", "down_proj")
        )
        return up, down

    def error(self, rows: torch.Tensor) -> float:
        """Of the first layer. Raises RuntimeError for too much, NaN included."""
        mixture = self.mixtures[0]
        got, routing = mixture.mixed(rows)
        checked = torch.linspace(0, len(rows) - 1, min(len(rows), CHECKED_TOKENS)).long()
        checked = checked.to(rows.device)
        wanted = torch.zeros(len(checked), rows.shape[1], device=rows.device)
        ids, weights = routing.ids[checked], routing.weights[checked]
        experts = mixture.experts
        for expert in range(self.shape.experts):
            token, choice = (ids == expert).nonzero(as_tuple=True)
            if len(token):
                up, down = self.wide(expert)
                inner = rows[checked[token]].float() @ up + experts.gate_up_proj_bias[expert]
                outer = experts.gate.apply(inner) @ down + experts.down_proj_bias[expert]
                wanted.index_add_(0, token, outer * weights[token, choice, None])
        found = float((got[checked].float() - wanted).norm() / wanted.norm())
        if not found <= LARGEST_ERROR:
            raise RuntimeError(f"{self.form}, {len(rows)} tokens: relative error {found}")
        return found


@dataclass(frozen=True)
class Row:
    """One case's figures, per layer. `read_share`: of the copy's bytes per second, by the bytes
    that must be read; `flop_share`: of the product's, by what must be multiplied."""

    form: str
    tokens: int
    tiles: str
    microseconds: float
    parts_us: dict[str, float]
    gb_s: float
    read_share: float
    tflop_s: float
    flop_share: float
    error: float
    transformers_us: float | None


def least_bytes(experts: KernelExperts, routing: Routing) -> int:
    """Weights of the experts that someone chose."""
    touched = int(torch.unique(routing.ids).numel())
    stacked = [*experts.parameters(), *experts.buffers()]
    return sum(one.numel() * one.element_size() for one in stacked) * touched // experts.count


def parts(layers: Layers, rows: torch.Tensor) -> dict[str, float]:
    """Seconds of each kernel by itself, per layer."""
    device = layers.shape.device
    routings, gated, products = [], [], []

    def router() -> None:
        routings[:] = [
            route(
                rows,
                mixture.router.weight,
                mixture.router.bias,
                layers.shape.per_token,
                mixture.experts.tuning(len(rows) * layers.shape.per_token).rows,
            )
            for mixture in layers.mixtures
        ]

    def up() -> None:
        gated[:] = [
            m.experts.first(rows, r) for m, r in zip(layers.mixtures, routings, strict=True)
        ]

    def down() -> None:
        products[:] = [
            m.experts.second(one, r)
            for m, one, r in zip(layers.mixtures, gated, routings, strict=True)
        ]

    def sums() -> None:
        for m, one, r in zip(layers.mixtures, products, routings, strict=True):
            m.experts.summed(one, r, rows.dtype)

    works: tuple[Callable[[], None], ...] = (router, up, down, sums)
    took_s = {}
    for name, work in zip(PARTS, works, strict=True):
        took_s[name] = seconds(work, device) / LAYERS
        work()  # what it leaves is then no captured graph's memory
    return took_s


def measure(layers: Layers, tokens: int, tiles: str, limits: tuple[float, float]) -> Row:
    """Raises RuntimeError where the result is wrong."""
    shape = layers.shape
    rows = torch.randn(tokens, shape.hidden, device=shape.device, dtype=shape.dtype)
    error = layers.error(rows)
    took_s = seconds(lambda: [m.mixed(rows) for m in layers.mixtures], shape.device) / LAYERS
    # By themselves and by transformers only as tuned: a sweep has many rows.
    by_part = parts(layers, rows) if tiles == TABLE else {}
    routings = [m.mixed(rows)[1] for m in layers.mixtures]
    moved = sum(
        least_bytes(m.experts, r) for m, r in zip(layers.mixtures, routings, strict=True)
    ) / len(routings)
    flop = 2 * tokens * shape.per_token * 3 * shape.hidden * shape.width
    theirs = None
    if layers.plain and tiles == TABLE:
        batch = rows.unsqueeze(0)
        calls_s = seconds(
            lambda: [mlp(batch) for mlp in layers.plain], shape.device, captured=False
        )
        theirs = round(calls_s / LAYERS * 1e6, 1)
    return Row(
        form=layers.form,
        tokens=tokens,
        tiles=tiles,
        microseconds=round(took_s * 1e6, 1),
        parts_us={name: round(part_s * 1e6, 1) for name, part_s in by_part.items()},
        gb_s=round(moved / took_s / 1e9, 1),
        read_share=round(moved / took_s / limits[0], 3),
        tflop_s=round(flop / took_s / 1e12, 1),
        flop_share=round(flop / took_s / limits[1], 3),
        error=float(f"{error:.2e}"),
        transformers_us=theirs,
    )


def trials(layers: Layers, tokens: int) -> list[tuple[str, ExpertTuning]]:
    """The table's tuning with one tile at a time replaced, and with other rows and splits."""
    table = layers.mixtures[0].experts.tuning(tokens * layers.shape.per_token)
    tiles = PLAIN_TRIALS if layers.form == "bfloat16" else MXFP4_TRIALS
    found = [(f"up {tile}", replace(table, up=tile)) for tile in tiles]
    found += [(f"down {tile}", replace(table, down=tile)) for tile in tiles]
    found += [(f"splits {n}", replace(table, splits=n)) for n in (1, 2, 3, 4)]
    found += [(f"rows {n}", replace(table, rows=n)) for n in (16, 32, 64, 128, 256)]
    return found


def run(shape: Shape, forms: list[str], sweep: bool) -> dict[str, Any]:
    import triton

    limits = ceilings(shape.device, shape.dtype)
    rows: list[Row] = []
    failures = 0
    for form in forms:
        torch.manual_seed(0)
        layers = Layers(form, shape)
        for tokens in shape.tokens:
            tunings: list[tuple[str, ExpertTuning | None]] = [(TABLE, None)]
            tunings += trials(layers, tokens) if sweep else []
            for name, tuning in tunings:
                for mixture in layers.mixtures:
                    mixture.experts.fixed = tuning
                try:
                    rows.append(measure(layers, tokens, name, limits))
                    print(line(rows[-1]), file=sys.stderr)
                except Exception as error:  # noqa: BLE001 a tile that does not fit ends no sweep
                    failures += name == TABLE
                    print(f"FAILED {form} {tokens} {name}: {error}", file=sys.stderr)
        del layers
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "device": torch.cuda.get_device_name() if shape.device.type == "cuda" else "CPU",
        "experts": shape.experts,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "copy_gb_s": round(limits[0] / 1e9, 1),
        "product_tflop_s": round(limits[1] / 1e12, 1),
        "failures": failures,
        "rows": [asdict(row) for row in rows],
    }


def line(row: Row) -> str:
    theirs = "" if row.transformers_us is None else f"{row.transformers_us}"
    parts = " | ".join(str(row.parts_us.get(name, "")) for name in PARTS)
    return (
        f"| {row.form} | {row.tokens} | {row.tiles} | {row.microseconds} | {parts} "
        f"| {row.gb_s} | {row.read_share:.0%} "
        f"| {row.tflop_s} | {row.flop_share:.0%} | {row.error:.1e} | {theirs} |"
    )


def markdown(result: dict[str, Any]) -> str:
    lines = [
        f"# Experts' kernels, {result['date']}",
        "",
        f"{result['device']}; torch {result['torch']}, triton {result['triton']}; "
        f"{result['experts']} experts. Ceilings measured in the same run: copy "
        f"{result['copy_gb_s']} GB/s, product {result['product_tflop_s']} TFLOP/s. Per layer; the "
        "parts are timed one by one and overlap in the whole.",
        "",
        f"| weights | tokens | tiles | µs | {' | '.join(PARTS)} | GB/s | of the copy "
        "| TFLOP/s | of the product | error | transformers, µs |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
        *(line(Row(**row)) for row in result["rows"]),
    ]
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="The experts' kernels on one GPU.")
    parser.add_argument("--tiny", action="store_true", help="interpreted, on the CPU")
    parser.add_argument("--sweep", action="store_true", help="other tiles too")
    parser.add_argument("--experts", type=int, default=32, help="of a layer")
    parser.add_argument("--tokens", type=int, nargs="*", help="only these numbers of tokens")
    parser.add_argument("--only", choices=("bfloat16", "mxfp4"), help="one form of weights")
    parser.add_argument("--out", type=Path, help="folder to write dated .md and .json into")
    args = parser.parse_args(argv)
    if not args.tiny and not torch.cuda.is_available():
        print("no CUDA device: not run")
        return 0
    shape = tiny_shape() if args.tiny else full_shape(args.experts)
    if args.tokens:
        shape = replace(shape, tokens=tuple(args.tokens))
    with torch.inference_mode():
        result = run(shape, [args.only] if args.only else ["bfloat16", "mxfp4"], args.sweep)
    text = markdown(result)
    print(text)
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        name = f"{result['date'][:10]}-gpu-experts-{result['experts']}"
        (args.out / f"{name}.md").write_text(text)
        (args.out / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    return 1 if result["failures"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
