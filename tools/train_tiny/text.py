"""The corpus as plain text, for training the tokenizer.

Knows: what texts a scene consists of. Does not know: tokens.
"""

from __future__ import annotations

import random

from tools.train_tiny.conversations import Mix, Scene, scene

from gpt_oss_server.harmony.render import developer_text, system_text

_SAMPLED = Mix(tools=(25, 52, 16, 7), two_calls=0.3)
"""The vocabulary stays as it is when what is learned is mixed anew: weights depend on it."""


def sample_text(*, scenes: int, seed: int) -> list[str]:
    """The bodies and headers of this many random scenes, each message a text."""
    rng = random.Random(seed)
    texts: list[str] = []
    for index in range(scenes):
        texts += _texts(scene(rng, with_tools=index % 2 == 0, threads=4, mix=_SAMPLED))
    return texts


def _texts(made: Scene) -> list[str]:
    texts = [system_text(made.today, made.effort, has_tools=bool(made.tools))]
    if developer := developer_text(made.head, made.tools):
        texts.append(developer)
    for thread in made.threads:
        for exchange in thread:
            texts.append(str(exchange.messages[-1]["content"]))
            texts += [
                "assistant",
                "user",
                "analysis",
                "final",
                "commentary to=functions.x ",
                "json",
            ]
            texts += [text for text in (exchange.say.analysis, exchange.say.final) if text]
            if exchange.say.call:
                texts.append(exchange.say.call[1])
    return texts
