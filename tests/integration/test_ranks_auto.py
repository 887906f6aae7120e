"""Mode auto in one process: on a CPU alone it is single mode; offloaded to disk it says the same;
and it never does either unasked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from engine_runs import job, kept_by_sampler, run
from gpt_oss_server.engine import single as sampling_of
from gpt_oss_server.engine.attention.interface import ATTENTION_NAME, LayerKv, StepContext
from gpt_oss_server.engine.core import EngineCore
from gpt_oss_server.engine.layout import register_attention
from gpt_oss_server.engine.loader import load_model, read_config
from gpt_oss_server.engine.nucleus import Nucleus, SortedNucleus
from gpt_oss_server.engine.ranks.skeleton import skeleton
from gpt_oss_server.errors import StartupError
from rank_engine import spec_for
from scarce_memory import SECRET
from tiny_models import build, saved

pytestmark = pytest.mark.usefixtures("one_thread")

LAYERS = 4
SPREAD = {
    "model.embed_tokens": "cpu",
    "model.norm": "cpu",
    "model.rotary_emb": "cpu",
    "lm_head": "disk",
    "model.layers.0": "cpu",
    "model.layers.1": "disk",
    "model.layers.2": "cpu",
    "model.layers.3": "disk",
}
JOBS = {key: job([7, 3, key, 19] * (key + 1), max_tokens=12) for key in range(5)}


@pytest.fixture(scope="module", params=["gpt_oss", "llama"])
def folder(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, one_thread: None
) -> str:
    return saved(build(request.param), Path(tmp_path_factory.mktemp(request.param)))


def core_of(folder: str, **settings: Any) -> tuple[EngineCore, list[str]]:
    """An engine, and what it said while it started."""
    said: list[str] = []
    return EngineCore(spec_for(folder, **settings), said.append), said


def tokens(core: EngineCore) -> dict[int, list[int]]:
    return {key: result.tokens for key, result in run(core, JOBS).items()}


def test_on_a_cpu_alone_it_is_single_mode(folder: str) -> None:
    """The same model, laid out for the CPU, in one piece and without a warning."""
    single, _ = core_of(folder)
    auto, said = core_of(folder, gpu_mode="auto")
    assert tokens(auto) == tokens(single)
    in_no_time = [msgspec.structs.replace(core.info(), startup=()) for core in (auto, single)]
    assert in_no_time[0] == in_no_time[1]
    assert not [line for line in said if "warning" in line]


def test_a_map_with_layers_on_disk(folder: str) -> None:
    """What the user's map leaves on disk is used right, and its cost is stated."""
    single, _ = core_of(folder)
    spread, said = core_of(folder, gpu_mode="auto", device_map=SPREAD)
    assert tokens(spread) == tokens(single)
    (warning,) = [line for line in said if "warning" in line]
    assert "of weights are offloaded to disk and cross to cpu in every step" in warning
    (rank,) = spread.info().ranks
    assert (rank.layers, rank.device) == (LAYERS, "cpu")
    assert rank.weights_bytes < 0.7 * single.info().weights_bytes
    assert rank.kv_bytes == sum(g.num_blocks * g.block_bytes for g in single.info().kv_groups)


@pytest.mark.parametrize(
    "given",
    [
        {"model": "cpu", "model.layers.1": "disk", "lm_head": "cpu"},
        {"model.layers.2.mlp": "disk", "": "cpu"},
        {"model.layers": "disk", "model.layers.0": "cpu", "": "cpu"},
    ],
    ids=["a layer", "part of a layer, first", "most layers"],
)
def test_an_entry_within_another(folder: str, given: dict[str, str]) -> None:
    """The longer name counts, whichever comes first, and all else is where the shorter puts it."""
    single, _ = core_of(folder)
    spread, _ = core_of(folder, gpu_mode="auto", device_map=given)
    assert tokens(spread) == tokens(single)
    blank = skeleton(Path(folder), read_config(Path(folder)), torch.float32)
    on_disk = sum(
        parameter.numel() * parameter.element_size()
        for name, parameter in blank.named_parameters()
        if _longest(name, given) == "disk"
    )
    assert on_disk > 0
    (rank,) = spread.info().ranks
    assert rank.weights_bytes == single.info().weights_bytes - on_disk


def _longest(name: str, given: dict[str, str]) -> str:
    """The place of a tensor."""
    fitting = [entry for entry in given if not entry or f"{name}.".startswith(f"{entry}.")]
    return given[max(fitting, key=len)]


def test_a_step_without_memory_is_computed_in_parts(folder: str) -> None:
    """As in single mode: every request says what it says anyway, nobody ends, and nothing is left
    of the step that was too large; what an exception says is in no line."""
    single, _ = core_of(folder)
    spread, said = core_of(folder, gpu_mode="auto", device_map=SPREAD)
    runner: Any = spread._runner
    model, adjust, refused = runner._model, runner.sampler._adjust, []

    def refuse(size: int, most: int) -> None:
        if size > most:
            refused.append(size)
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {SECRET}")

    def computed(input_ids: torch.Tensor, **more: Any) -> Any:
        output = model(input_ids=input_ids, **more)
        refuse(input_ids.numel(), 11)
        return output

    def adjusted(raw: torch.Tensor, sent: Any) -> torch.Tensor:
        refuse(len(raw), 2)
        result: torch.Tensor = adjust(raw, sent)
        return result

    runner._model, runner.sampler._adjust = computed, adjusted
    jobs = JOBS | {9: job([8, 3] * 7, max_tokens=9, repetition_penalty=1.4, logprobs=2)}
    expected, found = run(single, jobs), run(spread, jobs)
    assert {k: r.tokens for k, r in found.items()} == {k: r.tokens for k, r in expected.items()}
    assert not [result.error for result in found.values() if result.error]
    stats = spread.stats()
    assert (stats.shortages, stats.jobs_too_large) == (len(refused), 0)
    assert {size > 5 for size in refused} == {True, False}  # while computing and while sampling
    assert kept_by_sampler(spread) == 0
    lines = [line for line in said if line.startswith("out of memory in a step of ")]
    assert len(lines) == len(refused)
    assert not [line for line in said if SECRET in line]


def test_a_start_is_told_by_phase(folder: str) -> None:
    """As in every other mode."""
    spread, said = core_of(folder, gpu_mode="auto", device_map=SPREAD)
    startup = spread.info().startup
    assert [phase.name for phase in startup] == ["load", "pools"]
    assert all(phase.seconds is not None and phase.seconds > 0 for phase in startup)
    assert [line for line in said if line.startswith("start-up: load ")]


def test_it_samples_as_its_device_does_best(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the search for top_p on a GPU, not by sorting."""
    chosen: list[torch.device] = []
    searched = SortedNucleus()

    def make(device: torch.device) -> Nucleus:
        chosen.append(device)
        return searched

    monkeypatch.setattr(sampling_of, "make_nucleus", make)
    spread, _ = core_of(folder, gpu_mode="auto", device_map=SPREAD)
    assert spread._runner.sampler._nucleus is searched
    assert chosen == [torch.device("cpu")]


def test_what_does_not_fit_goes_to_disk_if_asked(folder: str) -> None:
    """A limit on the host's memory pushes layers out, and only with --offload disk."""
    weights = core_of(folder)[0].info().weights_bytes
    limit = {"cpu": f"{int(weights * 0.7)}"}
    spread, said = core_of(folder, gpu_mode="auto", max_memory=limit, offload="disk")
    assert spread.info().weights_bytes < 0.8 * weights
    assert [line for line in said if "offloaded to disk" in line]
    assert tokens(spread) == tokens(core_of(folder)[0])


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"device_map": {"": "tpu"}}, "'tpu' is no device"),
        ({"device_map": {"": "0"}}, "GPU 0 is not there, this machine has 0"),
        ({"device_map": {"": "disk"}}, "nothing is on a device that computes"),
        ({"device_map": {"model": "cpu"}}, "no place for lm_head.weight"),
        ({"max_memory": {"5": "1GiB"}, "offload": "disk"}, "no device '5' is in use, only cpu"),
        ({"max_memory": {"cpu": "much"}, "offload": "disk"}, "cpu=much is no size"),
        ({"device_map": SPREAD, "load_format": "random"}, "cannot be left on disk"),
    ],
)
def test_maps_and_limits_that_cannot_be(folder: str, settings: dict[str, Any], match: str) -> None:
    """One line that names the setting; a user's map is never mended."""
    if not torch.cuda.is_available():
        with pytest.raises(StartupError, match=match):
            core_of(folder, gpu_mode="auto", **settings)


def test_an_input_on_the_wrong_device_is_said(folder: str) -> None:
    """Before any kernel: which layer, which device its input is on, and where its KV is."""
    model = load_model(spec_for(folder), lambda _: None).model
    register_attention()
    model.set_attn_implementation(ATTENTION_NAME)
    elsewhere = torch.zeros(1, 4, 2, 16, device="meta")
    layers = [LayerKv(0, None, elsewhere, elsewhere)] * LAYERS
    context = StepContext(layers, None, None, torch.zeros(2))  # type: ignore[arg-type]
    with (
        pytest.raises(RuntimeError, match="layer 0: input is on cpu, its KV pool on meta"),
        torch.inference_mode(),
    ):
        model(input_ids=torch.zeros(1, 2, dtype=torch.long), step_context=context)
