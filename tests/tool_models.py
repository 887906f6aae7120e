"""Small models' text sides that know tools: harmony's, and two with a chat template of their own.

Knows: a byte-level vocabulary with ChatML's and Llama 3's special tokens, templates that write
tools and calls as the published ones of those families do. Does not know: engines, HTTP.
"""

from __future__ import annotations

import json
import re
from datetime import date
from functools import lru_cache
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

import gpt_oss_server
from gpt_oss_server.harmony.formats import open_chat_format
from gpt_oss_server.ports import ChatFormat

TINY = Path(gpt_oss_server.__file__).parent / "models" / "tiny"

PLAIN = """\
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""
HERMES = """\
{%- if tools %}
{{- '<|im_start|>system\\n# Tools\\n<tools>' }}
{%- for tool in tools %}{{- '\\n' + (tool | tojson) }}{%- endfor %}
{{- '\\n</tools>\\nAnswer with <tool_call>\\n{"name": <name>, "arguments": <object>}\\n' }}
{{- '</tool_call><|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{%- if message.role == 'tool' %}
{{- '<|im_start|>user\\n<tool_response>\\n' + message.content }}
{{- '\\n</tool_response><|im_end|>\\n' }}
{%- else %}
{{- '<|im_start|>' + message.role + '\\n' + (message.content or '') }}
{%- for call in message.tool_calls or [] %}
{{- '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
{{- (call.function.arguments | tojson) + '}\\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""
LLAMA = """\
{%- for message in messages %}
{%- set first = loop.first %}
{%- set role = 'ipython' if message.role == 'tool' else message.role %}
{{- '<|start_header_id|>' + role + '<|end_header_id|>\\n\\n' }}
{%- if first and tools %}
{{- 'Respond in the format {"name": function name, "parameters": its arguments}.\\n' }}
{%- for tool in tools %}{{- (tool | tojson(indent=4)) + '\\n\\n' }}{%- endfor %}
{%- endif %}
{%- if message.tool_calls %}
{%- if message.tool_calls | length > 1 %}{{- raise_exception('one call at once') }}{%- endif %}
{%- set call = message.tool_calls[0].function %}
{{- '{"name": "' + call.name + '", "parameters": ' + (call.arguments | tojson) + '}' }}
{%- else %}
{{- message.content | trim }}
{%- endif %}
{{- '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
# Calls in a form of its own, which this server cannot read.
FUNCTION_TAGS = (
    HERMES.replace('{"name": "\' + call', "<function=' + call")
    .replace('\'", "arguments": \'', "'>'")
    .replace("tojson) + '}\\\\n", "tojson) + '</function>\\\\n")
)

SPECIALS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    *("<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"),
)
_TEXT = 'user assistant system hello world "name": "arguments": {"city": "Paris"} 0123456789 '


def vocabulary(*, marks: bool = False, special_marks: bool = False) -> tokenizers.Tokenizer:
    """Byte-level. `marks`: `<tool_call>` and its end are tokens of their own, as Qwen has them;
    `special_marks`: special ones."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=290, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator([_TEXT * 4], trainer)
    backend.add_special_tokens(list(SPECIALS))
    if marks or special_marks:
        for text in ("<tool_call>", "</tool_call>"):
            token = AddedToken(text, special=special_marks, normalized=False)
            (backend.add_special_tokens if special_marks else backend.add_tokens)([token])
    return backend


def template_folder(folder: Path, template: str, **options: bool) -> Path:
    """A model folder with this chat template; `options` are those of `vocabulary`."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary(**options).save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps({"model_type": "other"}))
    end = "<|eot_id|>" if "eot_id" in template else "<|im_end|>"
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": end}
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": template}))
    return folder


def chat_format_of(folder: Path) -> ChatFormat:
    return open_chat_format(folder, today=lambda: date(2026, 1, 1))


@lru_cache(1)
def harmony() -> ChatFormat:
    """The built-in model's."""
    return chat_format_of(TINY)


def ids_of(backend: tokenizers.Tokenizer, text: str) -> list[int]:
    """Text to ids, special tokens spelled out in it as such."""
    found: list[int] = backend.encode(text, add_special_tokens=False).ids
    return found


@lru_cache(1)
def _harmony_specials() -> dict[str, int]:
    backend = tokenizers.Tokenizer.from_file(str(TINY / "tokenizer.json"))
    return {
        token.content: number
        for number, token in backend.get_added_tokens_decoder().items()
        if token.special
    }


def harmony_ids(text: str) -> list[int]:
    """Harmony's text to ids, special tokens spelled out in it as such."""
    known, ids = _harmony_specials(), []
    for part in re.split(r"(<\|\w+\|>)", text):
        ids += [known[part]] if part in known else harmony().encode(part)
    return ids


def function(name: str = "weather", **fields: Any) -> dict[str, Any]:
    """A tool definition; of a city's weather, unless told otherwise."""
    parameters = {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city"],
        "additionalProperties": False,
    }
    function = {"name": name, "description": "Knows.", "parameters": parameters, **fields}
    return {"type": "function", "function": function}
