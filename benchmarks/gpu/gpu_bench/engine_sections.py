"""What is measured of our engine, in its process: one function a section.

Knows: what each figure means. Does not know: targets, tables, other systems.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import asdict
from functools import partial
from typing import Any

import torch

from gpt_oss_server.memory.weights import weights_of
from gpu_bench.driving import Drive, allocated_bytes, recorded, waiting
from gpu_bench.figures import hidden_share, quantile
from gpu_bench.settings import Settings
from gpu_bench.shapes import work_of
from gpu_bench.traces import traced

PROFILED_STEPS = 12
TRACE_WARM_STEPS = 3
WINDOWS = 2
INFO = (
    *("attention_backend", "dtype", "device", "kv_token_capacity", "max_num_seqs"),
    *("max_batch_tokens", "max_model_len"),
)


class EngineBench:
    """One engine with one form of weights, and its sections by name."""

    def __init__(self, settings: Settings, form: str) -> None:
        self.settings, self.form = settings, form
        self.work = work_of(settings.shape)
        self.drive = Drive(settings, form)
        self.on_gpu = settings.device.startswith("cuda")

    def start(self) -> dict[str, Any]:
        """Seconds of start-up by phase, as the engine says them."""
        phases = self.drive.phases()
        info = self.drive.core.info()
        return {
            "seconds": round(sum(phase.seconds for phase in phases), 2),
            "phases": [{**asdict(one), "seconds": round(one.seconds, 2)} for one in phases],
            "forward": getattr(getattr(self.drive.runner, "_model", None), "name", "unknown"),
            "eager": self.settings.eager,
            "startup": [[one.name, one.seconds, one.why] for one in info.startup],
            **{name: getattr(info, name) for name in INFO},
        }

    def decode(self) -> dict[str, Any]:
        """Tokens per second of decode steps alone, by batch."""
        return {
            "batches": [
                self._decode(*case) for case in dict.fromkeys((self.work.one, self.work.many))
            ]
        }

    def _decode(self, batch: int, context: int) -> dict[str, Any]:
        steps, rates, times_s = self.work.steps, [], []
        begin = max(1, context - steps)  # the middle of what is measured has the context
        with self.drive.decoding(batch, begin, WINDOWS * steps) as lengths:
            first = statistics.mean(lengths.values())
            for _ in range(WINDOWS):
                began_s, tokens = time.perf_counter(), 0
                for _ in range(steps):
                    step_began_s = time.perf_counter()
                    tokens += self.drive.tokens()
                    times_s.append(time.perf_counter() - step_began_s)
                rates.append(tokens / (time.perf_counter() - began_s))
        return {
            "batch": batch,
            "context": round(first + WINDOWS * steps / 2),
            "tokens_per_s": round(statistics.mean(rates), 1),
            "windows": [round(rate, 1) for rate in rates],
            "step_ms": round(statistics.median(times_s) * 1e3, 3),
            "step_p99_ms": round(quantile(times_s, 0.99) * 1e3, 3),
        }

    def prefill(self) -> dict[str, Any]:
        """From a prompt's submission to its first token, after one that is not measured."""
        times_s = []
        for _ in range(1 + self.work.repeats):
            prompt = self.drive.prompt(self.work.prefill)
            began_s = time.perf_counter()
            self.drive.submit(prompt, 1)
            self.drive.drain()
            times_s.append(time.perf_counter() - began_s)
        took_s = statistics.median(times_s[1:])
        return {
            "tokens": self.work.prefill,
            "chunk": self.drive.core.info().max_batch_tokens,
            "tokens_per_s": round(self.work.prefill / took_s, 1),
            "ms": [round(one * 1e3, 1) for one in times_s[1:]],
        }

    def requests(self) -> dict[str, Any]:
        """All requests at once, to the end of the last."""
        work = self.work
        for _ in range(8):
            self.drive.submit(self.drive.prompt(work.request_input), 8)
        self.drive.drain()
        prompts = [self.drive.prompt(work.request_input) for _ in range(work.requests)]
        began_s = time.perf_counter()
        for prompt in prompts:
            self.drive.submit(prompt, work.request_output)
        said = self.drive.drain()
        took_s = time.perf_counter() - began_s
        tokens = sum(len(ids) for ids in said.values())
        if tokens != work.requests * work.request_output:
            raise RuntimeError(f"{tokens} tokens came of {work.requests * work.request_output}")
        return {
            "requests": work.requests,
            "input": work.request_input,
            "output": work.request_output,
            "seconds": round(took_s, 2),
            "tokens_per_s": round(tokens / took_s, 1),
        }

    def chats(self) -> dict[str, Any]:
        """Times between the tokens of chats, by themselves and while a long prompt prefills."""
        work, last, gaps = self.work, {}, {False: [], True: []}
        room = work.quiet_steps + 16 * (work.long_prompt // 512)
        with self.drive.decoding(work.chats, work.chat_context, room) as lengths:

            def step(beside: bool) -> set[int]:
                deltas = self.drive.step().deltas
                now_s = time.perf_counter()
                for key in lengths.keys() & {key for key, _ in deltas}:
                    if key in last:
                        gaps[beside].append(now_s - last[key])
                    last[key] = now_s
                return {key for key, delta in deltas if delta.finish is not None}

            # Not measured: what such steps launch is compiled when the first of them comes.
            first = self.drive.submit(self.drive.prompt(work.long_prompt // 8), 1)
            while not any(key == first for key, _ in self.drive.step().deltas):
                pass
            for _ in range(work.quiet_steps):
                step(False)
            began_s = time.perf_counter()
            long = self.drive.submit(self.drive.prompt(work.long_prompt), 1)
            while long not in step(True):
                pass
            took_s = time.perf_counter() - began_s
        quiet, beside = (quantile(gaps[which], 0.99) for which in (False, True))
        return {
            "chats": work.chats,
            "long_prompt": work.long_prompt,
            "long_seconds": round(took_s, 2),
            "gaps": [len(gaps[False]), len(gaps[True])],
            "quiet_p99_ms": round(quiet * 1e3, 2),
            "beside_p50_ms": round(quantile(gaps[True], 0.5) * 1e3, 2),
            "beside_p99_ms": round(beside * 1e3, 2),
            "ratio": round(beside / quiet, 2),
        }

    def hidden(self) -> dict[str, Any]:
        """Of a decode step at batch 1: how much of the host's work the device does not wait for.
        Step and host are timed without the profiler; what the device does, and how long it waits
        for the host, is the trace's, in which the host is slower: no figure in our favour."""
        if not self.on_gpu:
            return {"why_not": "a CPU is host and device in one"}
        batch, context = self.work.one
        steps = 2 * self.work.steps
        with self.drive.decoding(batch, context, steps + PROFILED_STEPS + 8), waiting() as waited:
            before_s, began_s = waited(), time.perf_counter()
            for _ in range(steps):
                self.drive.step()
            step_s = (time.perf_counter() - began_s) / steps
            host_s = step_s - (waited() - before_s) / steps
            seen = self._traced(PROFILED_STEPS)
        device_s, idle_s = seen.seconds / PROFILED_STEPS, seen.idle_seconds / PROFILED_STEPS
        return {
            "step_us": round(step_s * 1e6, 1),
            "device_busy_us": round(device_s * 1e6, 1),
            "device_waits_us": round(idle_s * 1e6, 1),
            "host_us": round(host_s * 1e6, 1),
            "launches": round(seen.launches / PROFILED_STEPS),
            "hidden": round(hidden_share(idle_s, host_s), 3),
        }

    def _traced(self, steps: int) -> Any:
        def work(count: int) -> None:
            for _ in range(count):
                self.drive.step()

        warm = partial(work, TRACE_WARM_STEPS)
        return traced(partial(work, steps), self.settings.device, warm)

    def profile(self) -> dict[str, Any]:
        """Kernels by device time: decode at both batches, and one long prompt."""
        found = {}
        for batch, context in dict.fromkeys((self.work.one, self.work.many)):
            with self.drive.decoding(batch, context, PROFILED_STEPS + 8):
                seen = self._traced(PROFILED_STEPS)
            found[f"decode, batch {batch}"] = {
                "unit": "step",
                "device_busy_ms": round(seen.seconds / PROFILED_STEPS * 1e3, 3),
                "launches": round(seen.launches / PROFILED_STEPS),
                "kernels": seen.table(PROFILED_STEPS),
            }
        prompts = [self.drive.prompt(self.work.prefill) for _ in range(2)]

        def prefill(prompt: list[int]) -> None:
            self.drive.submit(prompt, 1)
            self.drive.drain()

        prefill(prompts[0])
        seen = traced(lambda: prefill(prompts[1]), self.settings.device)
        found[f"prefill, {self.work.prefill} tokens"] = {
            "unit": "prompt",
            "device_busy_ms": round(seen.seconds * 1e3, 3),
            "launches": seen.launches,
            "kernels": seen.table(1),
        }
        return found

    def memory(self) -> dict[str, Any]:
        """What was reckoned before loading, beside what is there; and a step's peak."""
        info = self.drive.core.info()
        predicted = weights_of(self.settings.config(self.form)).total_bytes
        pools = sum(group.num_blocks * group.block_bytes for group in info.kv_groups)
        figures: dict[str, Any] = {
            "weights_predicted_bytes": predicted,
            "weights_held_bytes": info.weights_bytes,
            "pools_predicted_bytes": pools,
            "step_predicted_bytes": info.activations_bound_bytes,
            "step_profiled_bytes": info.activations_measured_bytes,
            "step_set_aside_bytes": info.activations_peak_bytes,
            "graphs_bytes": info.graphs_bytes,
        }
        if not self.on_gpu:
            return figures
        held = allocated_bytes()
        torch.cuda.reset_peak_memory_stats()
        batch, _ = self.work.many
        with self.drive.decoding(batch, 64, 64):
            self.drive.submit(self.drive.prompt(self.work.prefill), 1)
            for _ in range(16):
                self.drive.step()
        free, total = torch.cuda.mem_get_info()
        return {
            **figures,
            "allocated_bytes": held,
            "beside_weights_and_pools_bytes": held - predicted - pools,
            "step_real_bytes": torch.cuda.max_memory_allocated() - held,
            "reserved_bytes": torch.cuda.memory_reserved(),
            "device_used_bytes": total - free,
            "device_total_bytes": total,
            "shortages": self.drive.core.stats().shortages,
        }

    def answers(self) -> dict[str, Any]:
        """Greedy tokens and the logits they came from, kept for `compare`."""
        work = self.work
        prompts = [self.drive.prompt(tokens) for tokens in work.checked]
        with recorded(self.drive) as keeping:
            keys = [self.drive.submit(prompt, work.checked_output) for prompt in prompts]
            said = self.drive.drain()
        file = self.settings.scratch(f"answers-{self.form}.pt")
        kept = [
            {
                "prompt": prompt,
                "tokens": said[key],
                "logits": torch.stack(keeping.logits[key]).to("cpu"),
            }
            for key, prompt in zip(keys, prompts, strict=True)
        ]
        torch.save(kept, file)
        return {"prompts": len(kept), "tokens": sum(len(one["tokens"]) for one in kept)}
