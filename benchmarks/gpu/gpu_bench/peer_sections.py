"""transformers with the same weights on the same device: the yardstick, and the one to beat.

Knows: transformers. Does not know: our engine's inside; only how it makes a random model.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import torch

from gpu_bench.settings import Settings
from gpu_bench.shapes import SEED, work_of

LIMIT = 2e-2
"""‖ours - theirs‖ / ‖theirs‖ of one row of logits."""
SHOWN = 12
WHOLE_FLOAT32_SHARE = 0.8
PROBES = (8, 24)


class PeerBench:
    """One model of transformers, with its own modules throughout, and its sections by name."""

    def __init__(self, settings: Settings, form: str) -> None:
        self.settings, self.form = settings, form
        self.work = work_of(settings.shape)
        self.on_gpu = settings.device.startswith("cuda")
        self.model = self._load()
        self._random = random.Random(SEED + 1)

    def _load(self) -> Any:
        dtype, folder = getattr(torch, self.settings.dtype), self.settings.model(self.form)
        if self.form == "bf16":
            from gpt_oss_server.engine.loader import read_config, whole_model
            from gpt_oss_server.engine.spec import EngineSpec

            spec = EngineSpec(**self.settings.engine(self.form))
            device = torch.device(self.settings.device)
            return whole_model(spec, read_config(folder), dtype, device, lambda _: None)
        from transformers import AutoModelForCausalLM, Mxfp4Config

        model: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            device_map=self.settings.device,
            quantization_config=Mxfp4Config(dequantize=True),
            local_files_only=True,
        )
        return model.eval()

    def prompt(self, tokens: int) -> list[int]:
        return [self._random.randrange(self.model.config.vocab_size) for _ in range(tokens)]

    def _wait(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()

    def generate(self) -> dict[str, Any]:
        """Tokens per second of `generate` at batch 1, prefill taken out."""
        batch, context = self.work.one
        new = self.work.generated
        ids = torch.tensor([self.prompt(max(1, context - new // 2))], device=self.settings.device)

        def seconds(tokens: int) -> float:
            self._wait()
            began_s = time.perf_counter()
            self._generated(ids, tokens)
            self._wait()
            return time.perf_counter() - began_s

        seconds(2)
        one_s, all_s = seconds(1), seconds(1 + new)
        return {
            "batch": batch,
            "context": context,
            "tokens_per_s": round(new / (all_s - one_s), 2),
            "attention": self.model.config._attn_implementation,
            "experts": getattr(self.model.config, "_experts_implementation", None),
        }

    def _generated(self, ids: torch.Tensor, tokens: int) -> list[int]:
        with torch.inference_mode():
            out = self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                do_sample=False,
            )
        found: list[int] = out[0, ids.shape[1] :].tolist()
        return found

    def generate_batch(self) -> dict[str, Any]:
        """The work of `requests` by transformers' continuous batching. Where two short runs say
        that the whole would take too long, the figure is reckoned from them, in its favour:
        every step as fast as those with little in the cache."""
        work = self.work
        prompts = [self.prompt(work.request_input) for _ in range(work.requests)]
        # Makes what the others find: caches and graphs, for as many requests as these.
        self._batched(prompts, 1)
        few, some = PROBES
        few_s, some_s = (self._batched(prompts, tokens) for tokens in PROBES)
        step_s = max(1e-9, (some_s - few_s) / (some - few))
        reckoned_s = few_s + max(0, work.request_output - few) * step_s
        measured = reckoned_s <= self.settings.peer_limit_s
        took_s = self._batched(prompts, work.request_output) if measured else reckoned_s
        self.model.destroy_cached_continuous_batching_manager()
        tokens = work.requests * work.request_output
        return {
            "requests": work.requests,
            "input": work.request_input,
            "output": work.request_output,
            "seconds": round(took_s, 2),
            "tokens_per_s": round(tokens / took_s, 1),
            "measured": measured,
            "probes_s": {str(few): round(few_s, 2), str(some): round(some_s, 2)},
            "attention": self.model.config._attn_implementation,
        }

    def _batched(self, prompts: list[list[int]], tokens: int) -> float:
        """Seconds. Raises RuntimeError where not all tokens came."""
        from transformers import GenerationConfig

        asked = GenerationConfig(max_new_tokens=tokens, do_sample=False)
        self._wait()
        began_s = time.perf_counter()
        found = self.model.generate_batch(prompts, generation_config=asked, persistent_manager=True)
        self._wait()
        took_s = time.perf_counter() - began_s
        lengths = {len(one.generated_tokens) for one in found.values()}
        if len(found) != len(prompts) or lengths != {tokens}:
            raise RuntimeError(f"generate_batch gave {len(found)} answers of lengths {lengths}")
        return took_s

    def compare(self) -> dict[str, Any]:
        """Our tokens and logits, row by row, against transformers' on the same contexts: prompt and
        the tokens that we said before. A token is right if transformers' best is the same."""
        kept = torch.load(self.settings.scratch(f"answers-{self.form}.pt"))
        theirs = self._all_logits(kept)
        result = compared([one["logits"].float() for one in kept], theirs, kept)
        result["generate_agrees"] = self._agrees(kept)
        result["transformers_with_other_rounding"] = self._other_rounding(kept, theirs)
        result["in_float32"] = self._in_float32(kept, theirs)
        return result

    def _all_logits(self, kept: list[dict[str, Any]]) -> list[torch.Tensor]:
        """[tokens, vocab] float32 on the host, of each prompt."""
        return [self._logits(one["prompt"], one["tokens"]) for one in kept]

    def _logits(self, prompt: list[int], tokens: list[int]) -> torch.Tensor:
        ids = torch.tensor([prompt + tokens[:-1]], device=self.settings.device)
        with torch.inference_mode():
            out = self.model(input_ids=ids, use_cache=False, logits_to_keep=len(tokens))
        logits: torch.Tensor = out.logits[0].float().cpu()
        return logits

    def _agrees(self, kept: list[dict[str, Any]]) -> list[list[int]]:
        """(tokens that `generate` says alike from the first one on, tokens), of short prompts. What
        follows a difference follows another context."""
        found = []
        for one in kept[:3]:
            ids = torch.tensor([one["prompt"]], device=self.settings.device)
            theirs = self._generated(ids, len(one["tokens"]))
            alike = 0
            for mine, other in zip(one["tokens"], theirs, strict=True):
                if mine != other:
                    break
                alike += 1
            found.append([alike, len(theirs)])
        return found

    def _other_rounding(
        self, kept: list[dict[str, Any]], theirs: list[torch.Tensor]
    ) -> float | str:
        """How far transformers is from itself when it computes its experts one by one."""

        def work() -> float:
            before = self.model.config._experts_implementation
            self.model.set_experts_implementation("eager")
            try:
                return relative(self._all_logits(kept), theirs)
            finally:
                self.model.set_experts_implementation(before)

        return _or_why(work)

    def _in_float32(
        self, kept: list[dict[str, Any]], theirs: list[torch.Tensor]
    ) -> dict[str, float] | str:
        """Ours and theirs against the same weights in float32, where those fit."""
        if not self.on_gpu:
            return "everything is float32 already"
        held = sum(one.numel() * one.element_size() for one in self.model.parameters())
        if 2 * held > WHOLE_FLOAT32_SHARE * torch.cuda.get_device_properties(0).total_memory:
            return "does not fit: take --layers 4"

        def work() -> dict[str, float]:
            self.model.float()
            try:
                exact = self._all_logits(kept)
            finally:  # nothing is lost: the numbers were of the narrow type
                self.model.to(getattr(torch, self.settings.dtype))
            ours = relative([one["logits"].float() for one in kept], exact)
            return {"ours": ours, "transformers": relative(theirs, exact)}

        return _or_why(work)


def _or_why(work: Callable[[], Any]) -> Any:
    """A figure beside the main ones: what it fails with stands in its place."""
    try:
        return work()
    except Exception as error:  # noqa: BLE001 whatever it is
        return f"failed: {type(error).__name__}: {str(error).strip().splitlines()[:1]}"


def relative(got: list[torch.Tensor], wanted: list[torch.Tensor]) -> float:
    """‖got - wanted‖ / ‖wanted‖ over all rows."""
    off = sum(float((a - b).double().square().sum()) for a, b in zip(got, wanted, strict=True))
    whole = sum(float(b.double().square().sum()) for b in wanted)
    return float(f"{(off / whole) ** 0.5:.3e}")


def compared(
    ours: list[torch.Tensor], theirs: list[torch.Tensor], kept: list[dict[str, Any]]
) -> dict[str, Any]:
    """Rows [tokens, vocab] of each prompt. `margin`: how much better their best is than our token,
    by their own logits. Near a tie it is less than twice the largest difference of a logit."""
    rows = equal = over = 0
    worst, differing = 0.0, []
    for mine, other, one in zip(ours, theirs, kept, strict=True):
        errors = (mine - other).norm(dim=-1) / other.norm(dim=-1)
        best = other.argmax(dim=-1).tolist()
        rows += len(best)
        worst = max(worst, float(errors.max()))
        over += int((~(errors <= LIMIT)).sum())
        for n, (token, wanted) in enumerate(zip(one["tokens"], best, strict=True)):
            equal += token == wanted
            if token != wanted:
                figures = {
                    "margin": other[n, wanted] - other[n, token],
                    "largest_difference": (mine[n] - other[n]).abs().max(),
                    "error": errors[n],
                }
                rounded = {name: float(f"{float(size):.3e}") for name, size in figures.items()}
                differing.append({"prompt_tokens": len(one["prompt"]), "position": n, **rounded})
    differing.sort(key=lambda row: -row["margin"])
    return {
        "rows": rows,
        "equal": equal,
        "error": relative(ours, theirs),
        "worst_error": float(f"{worst:.3e}"),
        "rows_over_limit": over,
        "limit": LIMIT,
        "differing": differing[:SHOWN],
    }
