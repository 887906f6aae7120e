"""Log-probabilities in OpenAI's two shapes.

Knows: how a token is written in each. Does not know: how logprobs are computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from gpt_oss_server.api import wire
from gpt_oss_server.api.choice import ContentLogprob

TokenBytes = Callable[[int], bytes]

IMPOSSIBLE = -9999.0
"""What OpenAI's API writes for a token that cannot come; JSON has no infinity."""


def chat_logprobs(content: Iterable[ContentLogprob], token_bytes: TokenBytes) -> wire.ChatLogprobs:
    """The chat shape: per content token its text, bytes, logprob and best alternatives."""
    return wire.ChatLogprobs([_chat_token(item, token_bytes) for item in content])


def _chat_token(item: ContentLogprob, token_bytes: TokenBytes) -> wire.ChatTokenLogprob:
    chosen = item.logprob
    raw = token_bytes(chosen.token_id)
    return wire.ChatTokenLogprob(
        token=_text(raw),
        logprob=_finite(chosen.logprob),
        bytes=list(raw),
        top_logprobs=[
            wire.TopLogprob(_text(other), _finite(logprob), list(other))
            for other, logprob in ((token_bytes(token), lp) for token, lp in chosen.top)
        ],
    )


def completion_logprobs(
    content: Iterable[ContentLogprob], token_bytes: TokenBytes, *, wanted: int
) -> wire.CompletionLogprobs:
    """The completion shape: parallel lists. `text_offset` counts characters of the choice's text;
    two alternatives with the same text share one entry, the likelier one's."""
    items = list(content)
    return wire.CompletionLogprobs(
        tokens=[_text(token_bytes(item.logprob.token_id)) for item in items],
        token_logprobs=[_finite(item.logprob.logprob) for item in items],
        top_logprobs=[_by_text(item, token_bytes) for item in items] if wanted else None,
        text_offset=[item.offset_chars for item in items],
    )


def _by_text(item: ContentLogprob, token_bytes: TokenBytes) -> dict[str, float]:
    by_text: dict[str, float] = {}
    for token, logprob in (*item.logprob.top, (item.logprob.token_id, item.logprob.logprob)):
        by_text.setdefault(_text(token_bytes(token)), _finite(logprob))
    return by_text


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")


def _finite(logprob: float) -> float:
    # Written so that NaN becomes IMPOSSIBLE too.
    return logprob if logprob > IMPOSSIBLE else IMPOSSIBLE
