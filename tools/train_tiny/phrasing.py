"""Turns a topic's words into the questions that people ask.

Knows: sentence frames and the small noise of real questions (greetings in front, thanks behind,
lower case, no question mark). Does not know: topics, answers, which phrasings are held out.
"""

from __future__ import annotations

import random
from typing import Final

from tools.train_tiny.topics import Topic

THING_FRAMES: Final = (
    "What is {x}?",
    "What's {x}?",
    "What does {x} mean?",
    "What does {x} do?",
    "What is {x} for?",
    "What is meant by {x}?",
    "Explain {x}.",
    "Explain {x} to me.",
    "Can you explain {x}?",
    "Could you explain {x}?",
    "Please explain {x}.",
    "Explain what {x} is.",
    "Explain what {x} means.",
    "Tell me about {x}.",
    "Tell me what {x} is.",
    "Can you tell me about {x}?",
    "Can you tell me what {x} means?",
    "Tell me more about {x}.",
    "Describe {x}.",
    "Define {x}.",
    "{x}",
    "{x}?",
    "I do not understand {x}.",
    "I don't understand {x}",
    "I want to know about {x}.",
    "I would like to understand {x}.",
    "I have a question about {x}.",
    "A question about {x}:",
    "How does {x} work?",
    "How do I use {x}?",
    "Why is there {x}?",
    "Why do I need {x}?",
    "What should I know about {x}?",
    "What do you know about {x}?",
    "Do you know {x}?",
    "Do you know what {x} is?",
    "What about {x}?",
    "And {x}?",
    "Say something about {x}.",
    "Give me a short explanation of {x}.",
    "In one sentence, what is {x}?",
    "Help me understand {x}.",
    "What exactly is {x}?",
    "So what is {x}?",
    "meaning of {x}",
    "{x} meaning",
    "{x} explained",
    "What is the purpose of {x}?",
    "I read about {x}. What is it?",
    "The docs mention {x}. What does it mean?",
    "Someone mentioned {x}, what is that?",
    "How should I understand {x}?",
    "I saw {x}. What does that mean?",
)

DOING_FRAMES: Final = (
    "How do I {x}?",
    "How can I {x}?",
    "How do you {x}?",
    "How to {x}?",
    "how to {x}",
    "How could I {x}?",
    "How would I {x}?",
    "How should I {x}?",
    "What do I do to {x}?",
    "What must I do to {x}?",
    "What do I need to {x}?",
    "What is the way to {x}?",
    "What's the best way to {x}?",
    "Is there a way to {x}?",
    "Is it possible to {x}?",
    "Can I {x}?",
    "Can one {x}?",
    "I want to {x}.",
    "I would like to {x}.",
    "I'd like to {x}",
    "I need to {x}.",
    "I have to {x}.",
    "I am trying to {x}.",
    "I'm trying to {x}",
    "Show me how to {x}.",
    "Tell me how to {x}.",
    "Explain how to {x}.",
    "Can you tell me how to {x}?",
    "Can you show me how to {x}?",
    "Could you explain how to {x}?",
    "Please tell me how to {x}.",
    "Help me {x}.",
    "Help me to {x}.",
    "Where can I {x}?",
    "Where do I {x}?",
    "What command do I use to {x}?",
    "Which flag do I use to {x}?",
    "Which setting lets me {x}?",
    "I don't know how to {x}.",
    "Do you know how to {x}?",
    "Steps to {x}?",
    "{x}",
    "We want to {x}.",
    "How do we {x}?",
    "How does one {x}?",
    "What if I want to {x}?",
)

_OPENINGS: Final = (
    "Hi, ",
    "Hello! ",
    "Hey, ",
    "Hello, ",
    "Please: ",
    "Quick question: ",
    "Excuse me, ",
    "One more question. ",
    "Question: ",
    "Sorry, ",
    "OK, ",
    "Well, ",
    "Now, ",
    "Thanks. ",
    "And ",
    "So, ",
    "I am new here. ",
    "Just curious: ",
)
_ENDINGS: Final = (
    " Thanks!",
    " Please be brief.",
    " Answer in one sentence.",
    " Thank you.",
    " please",
    " Please explain.",
    " I am new to this.",
    " Keep it short.",
    " I need it for work.",
)


def question(rng: random.Random, topic: Topic) -> str:
    """One phrasing of a question about a topic, before noise."""
    weights = (
        len(topic.things) and 3 + len(topic.things) ** 0.5,
        len(topic.doings) and 3 + len(topic.doings) ** 0.5,
        len(topic.asked) ** 0.8,
    )
    kind = rng.choices(("thing", "doing", "asked"), weights)[0]
    if kind == "thing":
        return rng.choice(THING_FRAMES).format(x=rng.choice(topic.things))
    if kind == "doing":
        return rng.choice(DOING_FRAMES).format(x=rng.choice(topic.doings))
    return rng.choice(topic.asked)


def sentence_case(text: str) -> str:
    """The text with its first letter in upper case, unless its first word is a name in itself."""
    first = text.split(maxsplit=1)[0] if text.split() else ""
    plain = first.isalpha() and first.islower()
    return text[0].upper() + text[1:] if plain else text


def with_noise(rng: random.Random, text: str) -> str:
    """The text as a hurried or polite person types it."""
    text = sentence_case(text) if rng.random() < 0.8 else text
    if rng.random() < 0.12:
        lowered = text[0].lower() + text[1:] if rng.random() < 0.5 else text
        text = rng.choice(_OPENINGS) + lowered
    if rng.random() < 0.08:
        text += rng.choice(_ENDINGS)
    if rng.random() < 0.15:
        text = text.lower()
    if rng.random() < 0.15:
        text = text.rstrip("?.!")
    elif rng.random() < 0.04:
        text = text.rstrip("?.!") + rng.choice(("??", "!", "...", " ?"))
    return text or "?"


def normalised(text: str) -> str:
    """What stays of a question when case, punctuation and spacing do not count."""
    kept = "".join(c.lower() if c.isalnum() or c in "_-/" else " " for c in text)
    return " ".join(kept.split())
