"""What becomes of every parameter, endpoint by endpoint.

Knows: this server's behaviour, as it is claimed to users. Does not know: how it is rendered or
checked.
"""

from __future__ import annotations

from typing import Any

from tools.api_table.claim import Claim, honoured, no_effect, refused

_SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
_FUNCTION = {"name": "weather", "description": "Tells it.", "parameters": _SCHEMA}
_CHAT_TOOL = {"type": "function", "function": _FUNCTION}
_TOOL = {"type": "function", "strict": False, **_FUNCTION}

_TIERS = "every request is served alike; the answer says `default`"
_ONE_CALL = "gpt-oss makes one call a turn and reasons about its result before the next"
_SESSION = "requests of one user are one session, unless `X-Session-Id` names another"
_HASHED = "for OpenAI's abuse detection; kept nowhere"
_CACHE = "the prefix cache finds what prompts have in common by itself"
_NO_MODERATION = "there is no moderation model"
_NUCLEUS = "0 to 1; 0 is the most likely token alone"

SAMPLING: dict[str, Claim] = {
    "frequency_penalty": honoured(0.5, refused=(3,), note="-2 to 2"),
    "logit_bias": honoured({"20": 5}, refused=({"x": 1}, {"9999999": 1}), note="-100 to 100"),
    "max_tokens": honoured(3, refused=(0, 10**6)),
    "n": honoured(2, refused=(0, 1000), note="1 to 128"),
    "presence_penalty": honoured(0.5, refused=(-3,), note="-2 to 2"),
    "seed": honoured(
        5, note="with `system_fingerprint`; equal seeds give equal tokens in any batch"
    ),
    "stop": honoured("k", ["k"], refused=("", [""]), note="up to 16 strings"),
    "stream": honoured(True, refused=("yes",), note="server-sent events, `[DONE]` at the end"),
    "stream_options": honoured(
        {"include_usage": True},
        refused=({"include_obfuscation": True},),
        given={"stream": True},
        note="`include_usage`; `include_obfuscation` is refused unless false",
    ),
    "temperature": honoured(0.5, refused=(2.5,), note="0 to 2; 0 is greedy"),
    "top_p": honoured(0.5, refused=(1.5,), note=_NUCLEUS),
    "user": honoured("u", note=_SESSION, shows=False),
}

CHAT: dict[str, Claim] = {
    **SAMPLING,
    "messages": honoured(
        [{"role": "user", "content": "other"}],
        refused=([], [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]),
        note="text only; images, audio and files are refused by name",
    ),
    "model": honoured("tiny", note="404 for a model that is not served", shows=False),
    "audio": refused({"format": "mp3", "voice": "alloy"}, note="text only"),
    "function_call": refused(
        {"name": "f"}, note="deprecated: use `tool_choice`", taken=("none", "auto")
    ),
    "functions": refused([_FUNCTION], note="deprecated: use `tools`", taken=([],)),
    "logprobs": honoured(True, refused=(1,)),
    "max_completion_tokens": honoured(3, refused=(0, 10**6), note="the same as `max_tokens`"),
    "max_tokens": honoured(3, refused=(0, 10**6), note="reasoning included"),
    "metadata": no_effect(
        {"a": "b"},
        refused=({"a": 1}, {"k" * 65: "v"}),
        note="for OpenAI's dashboard; checked, kept nowhere",
    ),
    "modalities": refused(["text", "audio"], note="text only", taken=(["text"],)),
    "moderation": refused({"model": "omni-moderation-latest"}, note=_NO_MODERATION),
    "parallel_tool_calls": honoured(
        False, True, note=_ONE_CALL, given={"tools": [_CHAT_TOOL]}, shows=False
    ),
    "prediction": refused({"type": "content", "content": "x"}, note="no predicted outputs"),
    "prompt_cache_key": no_effect("k", note=_CACHE),
    "prompt_cache_options": refused({"mode": "implicit"}, note=_CACHE),
    "prompt_cache_retention": refused("24h", note=_CACHE),
    "reasoning_effort": honoured(
        "high",
        refused=("minimal",),
        note="`low`, `medium` and `high`, as the model was trained; refused where a model's chat "
        "template ignores it",
    ),
    "response_format": honoured(
        {"type": "json_object"},
        {"type": "json_schema", "json_schema": {"name": "a", "schema": _SCHEMA, "strict": True}},
        refused=({"type": "xml"},),
        note="enforced token by token; a schema that cannot be enforced is refused",
    ),
    "safety_identifier": no_effect("s", note=_HASHED),
    "service_tier": no_effect("flex", "auto", refused=("best",), note=_TIERS),
    "store": refused(
        True, note="chats are not stored; `/v1/responses` stores responses", taken=(False,)
    ),
    "tool_choice": honoured(
        "required",
        {"type": "function", "function": {"name": "weather"}},
        refused=({"type": "function", "function": {"name": "nobody"}},),
        given={"tools": [_CHAT_TOOL]},
    ),
    "tools": honoured(
        [_CHAT_TOOL],
        refused=([{"type": "custom", "custom": {"name": "c"}}], [_CHAT_TOOL, _CHAT_TOOL]),
        note="functions; custom tools are refused; `strict` arguments are enforced",
    ),
    "top_logprobs": honoured(2, refused=(21,), given={"logprobs": True}, note="0 to 20"),
    "verbosity": refused("low", note="the model was not trained for it", taken=("medium",)),
    "web_search_options": refused({}, note="no web search"),
}

COMPLETIONS: dict[str, Claim] = {
    **SAMPLING,
    "best_of": honoured(
        1,
        refused=(3,),
        note="1 or the same as `n`: all that is generated is returned",
        shows=False,
    ),
    "echo": honoured(True, note="not together with `logprobs`"),
    "logprobs": honoured(2, refused=(6,), note="0 to 5"),
    "max_tokens": honoured(3, refused=(0, 10**6), note="16 if left out, as OpenAI does"),
    "model": honoured("tiny", note="404 for a model that is not served", shows=False),
    "n": honoured(2, refused=(0, 1000), note="1 to 128, times the number of prompts"),
    "prompt": honoured(
        "other",
        ["a", "b"],
        [20, 21],
        [[20], [21]],
        refused=([], [[]]),
        note="text, token ids, or lists of either",
    ),
    "stop": honoured("a", ["a"], refused=("", [""]), note="up to 16 strings"),
    "suffix": refused("x", note="the models served do not fill in the middle"),
}

_NO_TOOLS = "this server has no tools of its own"

RESPONSES: dict[str, Claim] = {
    "access_programs": refused({"cyber": "standard"}, note="OpenAI's own"),
    "background": refused(
        True, note="stream, or wait: closing the connection cancels", taken=(False,)
    ),
    "background_options": refused({"completion_window": "soonest"}, note="see `background`"),
    "context_management": refused([{"type": "compaction"}], note="no compaction; see `truncation`"),
    "conversation": refused("conv_1", note="use `previous_response_id`"),
    "image": refused({"context_compression": "auto"}, note="text only"),
    "include": honoured(
        ["message.output_text.logprobs"],
        ["reasoning.encrypted_content"],
        refused=(["file_search_call.results"], ["message.input_image.image_url"]),
        note="`message.output_text.logprobs` and `reasoning.encrypted_content` (opaque, but no "
        f"secret: the reasoning is in `content` too); the others are refused: {_NO_TOOLS}",
    ),
    "input": honoured(
        "other",
        [{"role": "user", "content": "other"}],
        refused=(
            [],
            [{"type": "web_search_call", "id": "ws_1", "status": "completed"}],
            [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}],
        ),
        note="text, or items: messages (text only), `function_call`, `function_call_output`, "
        "`reasoning`, `item_reference`; items of hosted tools are refused by name",
    ),
    "instructions": honoured("Be brief.", note="of this response only, as OpenAI has it"),
    "max_output_tokens": honoured(3, refused=(0, 10**6), note="reasoning included"),
    "max_tool_calls": no_effect(
        2, refused=(0,), note="bounds calls of built-in tools, of which there are none"
    ),
    "metadata": honoured({"a": "b"}, refused=({"a": 1}, {"k" * 65: "v"})),
    "model": honoured("tiny", note="404 for a model that is not served", shows=False),
    "moderation": refused({"model": "omni-moderation-latest"}, note=_NO_MODERATION),
    "parallel_tool_calls": honoured(False, True, note=_ONE_CALL),
    "previous_response_id": honoured(
        refused=("resp_gone",), note="see [responses.md](responses.md)", shows=False
    ),
    "prompt": refused({"id": "pmpt_1"}, note="there are no stored prompt templates"),
    "prompt_cache_key": no_effect("k", note=_CACHE),
    "prompt_cache_options": refused({"mode": "implicit"}, note=_CACHE),
    "prompt_cache_retention": refused("24h", note=_CACHE, taken=("in_memory",)),
    "reasoning": honoured(
        {"effort": "high"},
        {"effort": "low", "summary": "auto"},
        {"summary": "detailed"},
        refused=({"effort": "minimal"}, {"summary": "concise"}, {"mode": "pro"}),
        note="`effort` `low`, `medium`, `high`; `summary` `auto` and `detailed` give the reasoning "
        "itself as the summary too: nothing here would shorten it, so `concise` is refused; "
        "`context` `auto` and `current_turn`",
    ),
    "safety_identifier": no_effect("s", note=_HASHED),
    "service_tier": no_effect("flex", "auto", refused=("best",), note=_TIERS),
    "store": honoured(False, True, note="true if left out; see [responses.md](responses.md)"),
    "stream": honoured(True, refused=("yes",), note="OpenAI's events, without `[DONE]`"),
    "stream_options": refused(
        {"include_obfuscation": True},
        taken=({"include_obfuscation": False},),
        given={"stream": True},
        note="no obfuscation",
    ),
    "temperature": honoured(0.5, refused=(2.5,), note="0 to 2; 0 is greedy"),
    "text": honoured(
        {"format": {"type": "json_object"}},
        {"format": {"type": "json_schema", "name": "a", "schema": _SCHEMA}},
        refused=({"format": {"type": "xml"}}, {"verbosity": "low"}),
        note="`format` is enforced token by token; `verbosity` is refused unless `medium`",
    ),
    "tool_choice": honoured(
        "required",
        {"type": "function", "name": "weather"},
        {
            "type": "allowed_tools",
            "mode": "auto",
            "tools": [{"type": "function", "name": "weather"}],
        },
        refused=({"type": "web_search_preview"}, {"type": "function", "name": "nobody"}),
        given={"tools": [_TOOL]},
        note="hosted tools are refused by name",
    ),
    "tools": honoured(
        [_TOOL],
        refused=([{"type": "web_search"}], [{"type": "mcp", "server_label": "x"}], [_TOOL, _TOOL]),
        note="functions; hosted tools, MCP servers and custom tools are refused by name; `strict` "
        "arguments are enforced, and `strict` left out is false",
    ),
    "top_logprobs": honoured(2, refused=(21,), note="0 to 20; above 0 it asks for logprobs itself"),
    "top_p": honoured(0.5, refused=(1.5,), note=_NUCLEUS),
    "truncation": honoured(
        "auto",
        "disabled",
        refused=("middle",),
        note="`auto` drops the beginning of a conversation that is too long, never instructions",
    ),
    "user": honoured("u", note=_SESSION),
}

CLAIMS: dict[str, dict[str, Claim]] = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": COMPLETIONS,
    "/v1/responses": RESPONSES,
}

SMALLEST: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]},
    "/v1/completions": {"model": "tiny", "prompt": "hi"},
    "/v1/responses": {"model": "tiny", "input": "hi"},
}
"""The smallest request of each endpoint."""
