"""Names of span attributes: OpenTelemetry's for generative AI, its general ones, and our own.

Knows: the names. Does not know: which span carries which, or their values. The GenAI conventions
(https://opentelemetry.io/docs/specs/semconv/gen-ai/) are in development and exist as no Python
package: a rename there is a change of one line here.
"""

from __future__ import annotations

from typing import Final

OPERATION_NAME: Final = "gen_ai.operation.name"
PROVIDER_NAME: Final = "gen_ai.provider.name"

REQUEST_MODEL: Final = "gen_ai.request.model"
REQUEST_STREAM: Final = "gen_ai.request.stream"
REQUEST_CHOICE_COUNT: Final = "gen_ai.request.choice.count"
REQUEST_MAX_TOKENS: Final = "gen_ai.request.max_tokens"
REQUEST_TEMPERATURE: Final = "gen_ai.request.temperature"
REQUEST_TOP_P: Final = "gen_ai.request.top_p"
REQUEST_TOP_K: Final = "gen_ai.request.top_k"
REQUEST_PRESENCE_PENALTY: Final = "gen_ai.request.presence_penalty"
REQUEST_FREQUENCY_PENALTY: Final = "gen_ai.request.frequency_penalty"

RESPONSE_ID: Final = "gen_ai.response.id"
RESPONSE_MODEL: Final = "gen_ai.response.model"
RESPONSE_FINISH_REASONS: Final = "gen_ai.response.finish_reasons"

USAGE_INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
USAGE_OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
USAGE_CACHED_TOKENS: Final = "gen_ai.usage.cache_read.input_tokens"
USAGE_REASONING_TOKENS: Final = "gen_ai.usage.reasoning.output_tokens"

# What is in the value of OPERATION_NAME: the Responses API is a chat, too.
OPERATION_CHAT: Final = "chat"
OPERATION_TEXT_COMPLETION: Final = "text_completion"
PROVIDER: Final = "gpt_oss_server"

# General conventions, stable.
ERROR_TYPE: Final = "error.type"
HTTP_METHOD: Final = "http.request.method"
HTTP_ROUTE: Final = "http.route"
HTTP_STATUS: Final = "http.response.status_code"

# Our own: the routing decision (public names), and what no convention has a name for.
ROUTING_INPUT_TOKENS: Final = "routing.input_tokens"
ROUTING_PREDICTED_KV_MB: Final = "routing.predicted_kv_mb"
ROUTING_DECISION: Final = "routing.decision"
ROUTING_TRIGGER_REASON: Final = "routing.trigger_reason"
ROUTING_TRIGGER: Final = "routing.trigger"
ROUTING_EXECUTED: Final = "routing.executed"
ROUTING_MEMORY_PRESSURE: Final = "routing.memory_pressure"
ROUTING_UNMET: Final = "routing.unmet_recommendation"
ROUTING_GPU_MODE: Final = "routing.gpu_mode"

REQUEST_ID: Final = "gpt_oss_server.request_id"
OUTCOME: Final = "gpt_oss_server.outcome"
PRIORITY: Final = "gpt_oss_server.priority"
CLIENT_CLASS: Final = "gpt_oss_server.client_class"
SHRUNK: Final = "gpt_oss_server.output_bound_lowered"
CACHED_SHARE: Final = "gpt_oss_server.cached_share"
TIME_PER_TOKEN_S: Final = "gpt_oss_server.time_per_output_token_s"
