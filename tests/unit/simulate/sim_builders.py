"""Small replicas and models for the simulator's tests, with round numbers."""

from __future__ import annotations

from gpt_oss_server.doctor.published import PUBLISHED
from gpt_oss_server.simulate.cost.gpu_types import GpuType, gpu_type
from gpt_oss_server.simulate.cost.layout import EngineSettings, Replica, Shape, lay_out
from gpt_oss_server.simulate.cost.roofline import Efficiency, model_cost
from gpt_oss_server.simulate.workload.requests import Request, Workload, workload_of

MODEL_120B = model_cost(PUBLISHED["openai/gpt-oss-120b"])

# A GPU on which a byte and an operation take a round time; efficiencies of one.
PLAIN_GPU = GpuType("plain", "test", 80_000_000_000, 1e12, 1e14, 1e11, "test", 1.0)
PLAIN = Efficiency(1.0, 0.0, 0.0, 1.0, 1.0, 0.0)


def replica(
    blocks: int | None = None, tp: int = 1, gpu: str = "h100", pp: int = 1, **settings: object
) -> Replica:
    """gpt-oss-120b on `tp · pp` GPUs, with a pool of `blocks` blocks if given."""
    limits = EngineSettings(**settings)  # type: ignore[arg-type]
    shape = Shape(gpu_type(gpu), tp, pp)
    whole = lay_out(PUBLISHED["openai/gpt-oss-120b"], MODEL_120B, shape, limits, Efficiency())
    return whole if blocks is None else whole.with_blocks(blocks)


def workload(*rows: tuple[float, int, int]) -> Workload:
    """Requests from (arrival, input, output)."""
    return workload_of("test", [Request(*row) for row in rows])
