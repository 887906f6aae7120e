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
    "What can you say about {x}?",
    "Why does {x} matter?",
    "Why would I want {x}?",
    "Is {x} important?",
    "Do I need {x}?",
    "Where does {x} come from?",
    "How can I understand {x}?",
    "How do you explain {x}?",
    "What is behind {x}?",
    "What is this {x}?",
    "What are your thoughts on {x}?",
    "I am reading about {x}.",
    "I am confused by {x}.",
    "Please say what {x} means.",
    "Please tell me about {x}.",
    "Talk about {x}.",
    "Teach me about {x}.",
    "A short definition of {x}?",
    "Let me know what {x} is.",
    "My colleague talks about {x}. What is that?",
    "The manual says {x}. What is this?",
    "My dashboard shows {x}. What is it?",
    "There is {x} in my output. Why?",
    "Why do I see {x}?",
    "When does {x} matter?",
    "Tell me: what is {x}?",
    "Does {x} matter?",
    "Is there something to know about {x}?",
    "Details on {x}, please.",
    "More on {x}",
    "Info about {x}",
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
    "What is needed to {x}?",
    "What does it take to {x}?",
    "I was told to {x}.",
    "Someone wants to {x}. How?",
    "Could you help me {x}?",
    "Will you help me to {x}?",
    "Is it easy to {x}?",
    "Is it hard to {x}?",
    "Which command do I need to {x}?",
    "What is the command to {x}?",
    "The fastest way to {x}?",
    "Any way to {x}?",
    "I wish to {x}.",
    "Let me {x}.",
    "I cannot {x}.",
    "I can't {x}, help",
    "It must be possible to {x}.",
    "Give me instructions to {x}.",
    "Where do I start if I want to {x}?",
    "When I want to {x}, what do I do?",
    "To {x}, what do I do?",
    "Please {x}.",
    "You should {x}.",
    "What do people do to {x}?",
    "What would you do to {x}?",
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


FILLERS: Final = (
    "I", "you", "we", "he", "she", "they", "it", "my", "your", "our", "the", "a", "this", "that",
    "these", "some", "any", "all", "no", "not", "what", "which", "who", "how", "why", "when",
    "where", "is", "are", "was", "be", "been", "do", "does", "did", "have", "has", "had", "can",
    "could", "will", "would", "should", "may", "might", "must", "want", "need", "like", "know",
    "think", "say", "said", "tell", "told", "ask", "asked", "see", "saw", "seen", "look", "find",
    "found", "read", "heard", "hear", "get", "got", "make", "give", "take", "use", "used", "please",
    "maybe", "just", "really", "only", "also", "still", "even", "again", "now", "then", "here",
    "there", "today", "yesterday", "always", "never", "often", "sometimes", "about", "with",
    "without", "for", "from", "to", "of", "in", "on", "at", "by", "as", "if", "or", "and", "but",
    "so", "because", "before", "after", "colleague", "friend", "teacher", "team", "customer",
    "manual", "page", "book", "article", "meeting", "word", "idea", "thing", "part", "question",
    "answer", "reason", "matter", "point", "kind", "sort", "way", "bit", "lot", "new", "good",
    "bad", "better", "best", "nice", "important", "right", "wrong", "true", "short", "long",
    "quick", "simple", "exactly", "actually", "again", "briefly", "quickly", "first", "last",
    "next", "one", "two", "first", "me", "us", "them", "him", "her",
)  # fmt: skip
"""Words that say nothing of the subject."""
SCATTERED_SHARE: Final = 0.14


def scattered(rng: random.Random, subject: str) -> str:
    """The subject among random fillers: no sentence, but what matters of many sentences."""
    before = [rng.choice(FILLERS) for _ in range(rng.randint(0, 6))]
    after = [rng.choice(FILLERS) for _ in range(rng.randint(0, 4))]
    if before and rng.random() < 0.15:
        before[rng.randrange(len(before))] += rng.choice((",", ".", ";", ":", "?"))
    stop = rng.choice((";", ",", ".", ":")) if after and rng.random() < 0.25 else ""
    return " ".join([*before, subject + stop, *after]) + rng.choice(("?", "?", "?", ".", ""))


def question(rng: random.Random, topic: Topic) -> str:
    """One phrasing of a question about a topic, before noise."""
    if rng.random() < SCATTERED_SHARE:
        return scattered(rng, rng.choice([*topic.things, *topic.doings]))
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
