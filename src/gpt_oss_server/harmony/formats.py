"""The text sides a model can have: harmony, or its own chat template.

Knows: how tokenizer, rendering and parsing belong together for one model folder, and which ids end
a turn. Does not know: requests, HTTP, the engine.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import tokenizers

from gpt_oss_server.errors import BadRequest
from gpt_oss_server.harmony.call_forms import CallForm, call_form
from gpt_oss_server.harmony.call_guides import template_call_guide
from gpt_oss_server.harmony.call_parse import CallParser
from gpt_oss_server.harmony.guides import HarmonyGuides
from gpt_oss_server.harmony.parse import HarmonyParser, TextParser
from gpt_oss_server.harmony.render import HarmonyRenderer, Tools
from gpt_oss_server.harmony.specials import HarmonySpecials, missing_specials
from gpt_oss_server.harmony.templates import (
    ChatTemplate,
    read_json,
    read_special_tokens,
    read_template,
)
from gpt_oss_server.harmony.tokenizer import Tokenizer, without_surrogates
from gpt_oss_server.ports import ChatFormat, OutputParser
from gpt_oss_server.types import Grammar, GuidedSpec

Messages = Sequence[Mapping[str, Any]]

BREAK = "\ufdd0"
"""A noncharacter, never part of anyone's text, that keeps special tokens from being recognised."""

# Spellings of "the turn is over" that some models forget to list as eos.
_TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|end|>", "<|eot|>")


def open_chat_format(folder: Path, *, today: Callable[[], date]) -> ChatFormat:
    """The text side of the model in a folder.

    Harmony if `config.json` says `gpt_oss` or the vocabulary has all of harmony's special tokens;
    else the model's own chat template.

    Args:
        folder: a model folder with at least `config.json` and a tokenizer.
        today: the date that prompts state; called for every rendered chat.

    Raises:
        StartupError: the folder's tokenizer or template cannot be used.
    """
    tokenizer = Tokenizer.from_folder(folder)
    is_gpt_oss = read_json(folder / "config.json").get("model_type") == "gpt_oss"
    if is_gpt_oss or not missing_specials(tokenizer):
        return HarmonyFormat(folder, today=today, tokenizer=tokenizer)
    return TemplateFormat(folder, today=today, tokenizer=tokenizer)


class _TokenizerSide:
    """What both formats share: the plain half of `ChatFormat`."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    @property
    def vocab_size(self) -> int:
        return self._tokenizer.vocab_size

    def encode(self, text: str) -> list[int]:
        """Plain text to ids, with the BOS that the tokenizer puts before a text, if it does (Llama,
        Mistral, Gemma; not gpt-oss)."""
        return self._tokenizer.encode(text, add_special_tokens=True)

    def fewest_tokens(self, text: str) -> int:
        return self._tokenizer.fewest_tokens((text,))

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids)

    def token_bytes(self, token_id: int) -> bytes:
        return self._tokenizer.token_bytes(token_id)

    def text_parser(self) -> OutputParser:
        detokenizer = self._tokenizer.detokenizer(continuation=True)
        return TextParser(detokenizer, self._tokenizer.special_ids)


class HarmonyFormat(_TokenizerSide):
    """`ChatFormat` of gpt-oss. Raises StartupError if the vocabulary is not harmony's."""

    def __init__(
        self, folder: Path, *, today: Callable[[], date], tokenizer: Tokenizer | None = None
    ) -> None:
        super().__init__(tokenizer or Tokenizer.from_folder(folder))
        self._today = today
        self._specials = HarmonySpecials.of(self._tokenizer)
        self._renderer = HarmonyRenderer(self._tokenizer)
        self._guides = HarmonyGuides(self._tokenizer, self._specials)
        own = (self._specials.return_, self._specials.call)
        self._stop_token_ids = tuple(dict.fromkeys((*own, *_configured_eos(folder))))

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """`<|return|>`, `<|call|>`, and what the model's files list beside them."""
        return self._stop_token_ids

    def render_chat(
        self,
        messages: Messages,
        *,
        reasoning_effort: str | None = None,
        tools: Tools | None = None,
        response_format: Mapping[str, Any] | None = None,
    ) -> list[int]:
        return self._renderer.render(
            messages,
            today=self._today(),
            reasoning_effort=reasoning_effort,
            tools=tools,
            response_format=response_format,
        )

    def fewest_chat_tokens(self, messages: Messages) -> int:
        """Harmony shows every message's content, whatever else it leaves out."""
        return self._tokenizer.fewest_tokens(message.get("content") or "" for message in messages)

    def answer_guide(self, grammar: Grammar) -> GuidedSpec:
        """The final message is guided; analysis before it is free."""
        return self._guides.answer(grammar)

    def call_guide(
        self,
        arguments: Mapping[str, Grammar],
        *,
        required: bool,
        answer: Grammar | None = None,
        parallel: bool = True,
    ) -> GuidedSpec | None:
        """gpt-oss makes one call a turn, whatever `parallel` allows."""
        return self._guides.calls(arguments, required=required, answer=answer)

    def chat_parser(self, *, tools: bool = False) -> OutputParser:
        """Calls are framed, and told from content whether offered or not."""
        return HarmonyParser(self._tokenizer, self._specials)


class TemplateFormat(_TokenizerSide):
    """`ChatFormat` of a model with its own chat template; without one, completions only.

    A special token spelled out by a client never becomes one: it is broken with a noncharacter
    before the template sees it, and taken out again behind the point where the tokenizer recognises
    special tokens. (Added tokens that their tokenizer does not call special,
    such as Qwen's `<think>`, are ordinary text by that definition and are recognised.)
    """

    def __init__(
        self, folder: Path, *, today: Callable[[], date], tokenizer: Tokenizer | None = None
    ) -> None:
        super().__init__(tokenizer or Tokenizer.from_folder(folder))
        named = read_special_tokens(folder)
        self._template = _open_template(folder, named, today=today, with_tools=False)
        self._tool_template = _open_template(folder, named, today=today, with_tools=True)
        specials = self._tokenizer.specials()
        self._special_text = _any_of(specials)
        self._prompts = _prompt_backend(self._tokenizer) if self._template else None
        source = self._template.source if self._template else ""
        ends = [named.get("eos_token", ""), *(end for end in _TURN_ENDS if end in source)]
        own = (specials[end] for end in ends if end in specials)
        self._stop_token_ids = tuple(dict.fromkeys((*_configured_eos(folder), *own)))
        template = self._tool_template
        self._call_form = None if template is None else call_form(template)
        self._call_marks = _marks(self._call_form, specials)

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """The eos ids of the generation and model config and the tokenizer's own, and an
        end-of-turn token that the template writes."""
        return self._stop_token_ids

    def render_chat(
        self,
        messages: Messages,
        *,
        reasoning_effort: str | None = None,
        tools: Tools | None = None,
        response_format: Mapping[str, Any] | None = None,
    ) -> list[int]:
        template = self._tool_template if tools else self._template
        if template is None or self._prompts is None:
            raise BadRequest(
                "this model has no chat template: use /v1/completions", param="messages"
            )
        if tools and self._call_form is None:
            raise BadRequest(
                "Invalid value for 'tools': this model's chat template knows no tools, or writes "
                "calls in a form that is not supported.",
                param="tools",
            )
        if reasoning_effort is not None and not template.knows("reasoning_effort"):
            raise BadRequest(
                "Invalid value for 'reasoning_effort': this model's chat template ignores it.",
                param="reasoning_effort",
            )
        extra = {} if reasoning_effort is None else {"reasoning_effort": reasoning_effort}
        text = template.render(
            self._defused(messages), tools=self._defused(tools) if tools else None, **extra
        )
        return self._prompt_ids(text)

    def fewest_chat_tokens(self, messages: Messages) -> int:
        """None: a template may leave out anything."""
        return 0

    def answer_guide(self, grammar: Grammar) -> GuidedSpec:
        """The whole answer is guided, from its first token."""
        return GuidedSpec.whole(grammar)

    def call_guide(
        self,
        arguments: Mapping[str, Grammar],
        *,
        required: bool,
        answer: Grammar | None = None,
        parallel: bool = True,
    ) -> GuidedSpec | None:
        if self._call_form is None or (answer is not None and not required):
            return None
        return template_call_guide(
            self._call_form,
            self._prompt_ids,
            self._stop_token_ids,
            arguments,
            required=required,
            parallel=parallel,
        )

    def chat_parser(self, *, tools: bool = False) -> OutputParser:
        detokenizer, hidden = self._tokenizer.detokenizer(), self._tokenizer.special_ids
        if not tools or self._call_form is None:
            return TextParser(detokenizer, hidden)
        return CallParser(detokenizer, hidden, self._call_marks, self._call_form)

    def _prompt_ids(self, text: str) -> list[int]:
        if self._prompts is None:
            return []
        return self._prompts.encode_batch_fast([text], add_special_tokens=False)[0].ids

    def _defused(self, value: Any) -> Any:
        """The same data, with every special token's spelling broken up."""
        if isinstance(value, str):
            clean = without_surrogates(value).replace(BREAK, "")
            return self._special_text.sub(lambda m: m[0][:1] + BREAK + m[0][1:], clean)
        if isinstance(value, Mapping):
            return {self._defused(key): self._defused(item) for key, item in value.items()}
        if isinstance(value, Sequence):
            return [self._defused(item) for item in value]
        return value


def _open_template(
    folder: Path, named: Mapping[str, str], *, today: Callable[[], date], with_tools: bool
) -> ChatTemplate | None:
    source = read_template(folder, with_tools=with_tools)
    return None if source is None else ChatTemplate(source, named, today=today)


def _marks(form: CallForm | None, specials: Mapping[str, int]) -> dict[int, str]:
    """The marks of a form that are special tokens, and so have no text of their own."""
    marks = () if form is None else (form.opening, form.closing)
    return {specials[text]: text for text in marks if text in specials}


def _any_of(specials: Mapping[str, int]) -> re.Pattern[str]:
    """Matches any special token's text, the longest first. Never matches if there is none."""
    longest_first = sorted((text for text in specials if text), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def _prompt_backend(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    """A tokenizer for rendered prompts: recognises special tokens, then drops `BREAK`.

    Special tokens are matched in the raw text, so a normalizer may drop it, after which the text
    is encoded as if it had never been there. Some older vocabularies match them in the normalized
    text: there only a pre-tokenizer is late enough, and text may not merge across the break.
    """
    spec = json.loads(tokenizer.to_json())
    pattern = {"String": BREAK}
    if any(token["special"] and token["normalized"] for token in spec["added_tokens"]):
        drop = {"type": "Split", "pattern": pattern, "behavior": "Removed", "invert": False}
        stage, members = "pre_tokenizer", "pretokenizers"
    else:
        drop = {"type": "Replace", "pattern": pattern, "content": ""}
        stage, members = "normalizer", "normalizers"
    steps = [drop] if spec[stage] is None else [drop, spec[stage]]
    spec[stage] = {"type": "Sequence", members: steps}
    return tokenizers.Tokenizer.from_str(json.dumps(spec))


def _configured_eos(folder: Path) -> list[int]:
    """The eos ids of `generation_config.json` and `config.json` (its text part too)."""
    config = read_json(folder / "config.json")
    found: list[int] = []
    text_config = config.get("text_config")
    for source in (
        read_json(folder / "generation_config.json"),
        config,
        text_config if isinstance(text_config, dict) else {},
    ):
        eos = source.get("eos_token_id")
        found += [eos] if isinstance(eos, int) else (eos or [])
    return found
