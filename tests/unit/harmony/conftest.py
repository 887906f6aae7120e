"""What every test of this room needs."""

from __future__ import annotations

import pytest
from harmony_vocabularies import TINY
from hypothesis import settings

from gpt_oss_server.harmony.specials import HarmonySpecials
from gpt_oss_server.harmony.tokenizer import Tokenizer

# A busy machine must not fail a property for being slow.
settings.register_profile("no-deadline", deadline=None)
settings.load_profile("no-deadline")


@pytest.fixture(scope="session")
def tiny() -> Tokenizer:
    """The built-in model's tokenizer."""
    return Tokenizer.from_folder(TINY)


@pytest.fixture(scope="session")
def specials(tiny: Tokenizer) -> HarmonySpecials:
    """Harmony's framing tokens in that vocabulary."""
    return HarmonySpecials.of(tiny)
