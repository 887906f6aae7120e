"""Is a guide sound? What can be told without compiling its grammars.

Knows: how the states of a `GuidedSpec` refer to each other. Does not know: the grammar library,
so that engines without one can check as well.
"""

from __future__ import annotations

from gpt_oss_server.errors import BadRequest
from gpt_oss_server.types import GUIDE_END, FixedText, FreeText, GrammarText, GuidedSpec


def check_spec(spec: GuidedSpec, vocab_size: int) -> None:
    """What the front got wrong must not stop the step loop later. Raises BadRequest."""
    states = range(GUIDE_END, len(spec.states))
    tokens: list[int] = []
    nexts: list[int] = []
    for state in spec.states:
        match state:
            case FixedText(paths):
                nexts += [next_state for _, next_state in paths]
                tokens += [token for path, _ in paths for token in path]
                sound = bool(paths) and all(path for path, _ in paths)
            case FreeText(exits):
                nexts += exits.values()
                tokens += exits
                sound = bool(exits)
            case GrammarText(grammar, exits):
                nexts += exits.values()
                tokens += exits
                sound = 0 <= grammar < len(spec.grammars)
        if not sound:
            raise BadRequest("the guide has an incomplete state", param="guided")
    if not spec.states or any(state not in states for state in nexts):
        raise BadRequest("the guide has a state that does not exist", param="guided")
    if any(not 0 <= token < vocab_size for token in tokens):
        raise BadRequest("the guide has a token outside the vocabulary", param="guided")
