"""Phrasings kept out of training, for the evaluation.

Knows: how people might ask about each topic in words that the corpus does not use. Does not know:
answers. The corpus generator drops every question that equals one of these (case, punctuation and
spacing aside) and never sees the frames below; a test asserts both.
"""

from __future__ import annotations

from typing import Final

from tools.train_tiny.phrasing import normalised

THING_FRAMES: Final = (
    "Mind telling me what {x} is?",
    "What am I to make of {x}?",
    "I keep reading about {x}; what is it?",
    "Give me the gist of {x}.",
    "I never heard of {x}, could you help?",
    "How would you describe {x}?",
)
DOING_FRAMES: Final = (
    "What's the trick to {x}?",
    "Any idea how I could {x}?",
    "My boss asked me to {x}. How?",
    "Walk me through how to {x}.",
    "Which steps are needed to {x}?",
)

QUESTIONS: Final[dict[str, tuple[str, ...]]] = {
    "route4": (
        "What's the meaning of route4?",
        "For which requests is route4 taken?",
        "My request went to route4, what is that?",
    ),
    "single_gpu": ("What is the single_gpu route about?", "The stats say single_gpu: meaning?"),
    "triggers": (
        "What are the routing triggers called?",
        "Could you list all triggers?",
        "What are the three triggers for routing?",
    ),
    "large_input": (
        "What's the threshold of large_input?",
        "At how many tokens does large_input fire?",
        "My log says large_input, why?",
    ),
    "large_kv": ("At how many MB does large_kv fire?", "My log says large_kv, why?"),
    "memory_pressure": (
        "At what value does memory_pressure fire?",
        "My log says memory_pressure, why?",
        "Is memory pressure bad?",
    ),
    "gpu_mode": (
        "Which of the GPU modes do you recommend?",
        "I have four GPUs, which gpu mode?",
        "What is the right --gpu-mode for me?",
        "Help me choose between the GPU modes.",
    ),
    "mode_single": ("What is single mode good for?",),
    "mode_auto": ("What is auto mode good for?",),
    "mode_tensor": ("What is tensor mode good for?",),
    "mode_pipeline": ("What is pipeline mode good for?",),
    "x_route": (
        "What is that X-Route header in the response?",
        "How do I know on which route my request ran?",
    ),
    "unmet": ("Why do I see unmet_recommendations?",),
    "balance": ("What is gpu_balance telling me?",),
    "stats": (
        "How is /stats to be read?",
        "What can I learn from /stats?",
        "Could you explain the numbers of /stats?",
    ),
    "memory_stats": ("What can I learn from /memory_stats?", "Where do I see used memory?"),
    "health": (
        "Where do I see the server's health?",
        "How do I find out if the server is healthy?",
        "Which URL shows the health?",
    ),
    "metrics": ("Where does Prometheus find the metrics?", "What metrics do you export?"),
    "bundle": ("How do I download the debug bundle?",),
    "logs": ("Where do I find the logs?", "Does the log contain my prompts?"),
    "request_id": ("What is X-Request-Id good for?",),
    "doctor": ("What is gpt-oss-server doctor good for?",),
    "replay": ("What is gpt-oss-server replay good for?",),
    "ttft": ("What's TTFT short for?",),
    "tiny": (
        "Hello, who are you?",
        "What kind of model are you?",
        "And what can you do for me?",
        "What is the tiny model good at?",
        "Are you a large model?",
    ),
    "start_20b": (
        "What do I type to start 20b?",
        "How do I get gpt-oss-20b running?",
        "I'd like the 20b model, please",
    ),
    "start_120b": (
        "What do I type to start 120b?",
        "How do I get gpt-oss-120b running?",
        "I'd like the 120b model, please",
    ),
    "start": ("How do I bring up the server?", "What do I type to start the server?"),
    "other_models": ("Can you run other models than gpt-oss?", "Do you support Llama models?"),
    "api_key": (
        "How do I configure the API key?",
        "Where is the API key set?",
        "Can I put a key on the server?",
    ),
    "admin_key": ("How do I configure the admin key?",),
    "port": ("How do I run it on port 9000?", "Can I use a different port?"),
    "settings": ("Where do I find all settings?", "What settings does the server have?"),
    "stop": ("How is the server stopped?", "How do I stop this server?"),
    "client": ("How do I use it with OpenAI's Python client?", "Which base_url do I set?"),
    "endpoints": ("What are the endpoints of this API?", "Which endpoints does the server have?"),
    "streaming": ("How do I get a streamed answer?", "Do you support streaming?"),
    "tools": ("Can I give you functions to call?", "Do you know how to use tools?"),
    "reasoning": ("How do I choose the reasoning effort?", "Which values has reasoning_effort?"),
    "harmony": ("What is this harmony format?", "What is harmony good for?"),
    "kv_cache": (
        "What's the KV cache about?",
        "What is stored in the KV cache?",
        "What is a KV cache good for?",
    ),
    "kv_size": ("How many bytes of KV cache per token?", "What is the KV cache size of 20b?"),
    "prefix_caching": (
        "What is prefix caching good for?",
        "What's the idea of prefix caching?",
        "Are prefixes cached?",
    ),
    "preemption": (
        "What's a preemption?",
        "My request was preempted, what does that mean?",
        "Is anything lost in a preemption?",
    ),
    "batching": ("What is continuous batching good for?",),
    "chunked_prefill": ("What is chunked prefill good for?",),
    "admission": ("What is admission good for?",),
    "lease": ("What is a KV lease?", "What's the lease of a request?", "Explain the word lease."),
    "context": ("What is your context length?", "How many tokens may a prompt have?"),
    "sliding": ("What is a sliding window good for?",),
    "experts": ("How many experts are in a layer?",),
    "mxfp4": ("What is MXFP4 good for?",),
    "token": ("What's a token?",),
    "temperature": ("Which temperature should I use?",),
    "e429": (
        "What's a 429?",
        "The server says 429, what now?",
        "Why am I getting 429 errors?",
        "What does the status code 429 mean?",
    ),
    "e503": ("Why am I getting 503 errors?", "What does the status code 503 mean?"),
    "e401": ("Why am I getting 401 errors?", "What does the status code 401 mean?"),
    "e400": ("Why am I getting 400 errors?", "What does the status code 400 mean?"),
    "e404": ("Why am I getting 404 errors?", "What does the status code 404 mean?"),
    "out_of_memory": ("Will it ever run out of memory?",),
}
"""Topic key to whole questions."""

EVERYDAY: Final[tuple[tuple[str, str], ...]] = (
    ("route4", "what on earth does route4 stand for"),
    ("route4", "route4_gpu_requests went up, what does that tell me?"),
    ("single_gpu", "My answer says single_gpu, is that fine?"),
    ("triggers", "I need the list of routing triggers"),
    ("large_input", "What counts as large_input around here?"),
    ("large_kv", "Who decides that large_kv is reached?"),
    ("memory_pressure", "Is memory_pressure something to worry about?"),
    ("gpu_mode", "There are two GPUs in my box. Which GPU mode do I take?"),
    ("mode_tensor", "Does tensor mode make sense for me?"),
    ("mode_pipeline", "When would somebody pick pipeline mode?"),
    ("x_route", "There's an X-Route header, what is it saying?"),
    ("stats", "How am I supposed to read /stats?"),
    ("stats", "I opened /stats and do not get it"),
    ("memory_stats", "Please walk me through /memory_stats"),
    ("health", "Which answer do I expect from /health?"),
    ("metrics", "We run Prometheus. Where are your metrics?"),
    ("bundle", "Support wants a debug bundle from me"),
    ("logs", "Are my prompts in the logs?"),
    ("request_id", "Can I pass an X-Request-Id?"),
    ("doctor", "Will gpt-oss-server doctor help me?"),
    ("ttft", "Somebody said my TTFT is high"),
    ("tiny", "Who am I talking to?"),
    ("tiny", "Tell me who you are"),
    ("start_20b", "Please give me the command to start 20b"),
    ("start_120b", "What would it take to run gpt-oss-120b here?"),
    ("start", "What's the command to start the server?"),
    ("api_key", "I want the server to ask for an API key"),
    ("api_key", "What's the way to set an API key here?"),
    ("admin_key", "What would I need an admin key for?"),
    ("port", "Could the server listen on another port?"),
    ("settings", "Is there a list of all settings anywhere?"),
    ("stop", "How can I shut down the server?"),
    ("client", "Does the OpenAI client work with this?"),
    ("endpoints", "Give me a list of the endpoints"),
    ("streaming", "Can I have the answer as a stream?"),
    ("tools", "How is function calling done here?"),
    ("reasoning", "How do I get less reasoning?"),
    ("harmony", "Everybody talks about harmony channels, what are they?"),
    ("kv_cache", "Why does a server have a KV cache?"),
    ("kv_size", "How much KV cache does one token take?"),
    ("prefix_caching", "Does prefix caching help me?"),
    ("preemption", "There was a preemption, should I worry?"),
    ("batching", "Is continuous batching a good thing?"),
    ("chunked_prefill", "Somebody should explain chunked prefill to me"),
    ("admission", "How is admission decided?"),
    ("lease", "What exactly does a KV lease hold?"),
    ("lease", "Who gives a KV lease back, and when?"),
    ("lease", "I read that every request has a KV lease, what is it?"),
    ("context", "What's the longest context you have?"),
    ("sliding", "Why does gpt-oss have a sliding window?"),
    ("experts", "A mixture of experts, what would that be?"),
    ("mxfp4", "The weights are MXFP4, they say. What is it?"),
    ("temperature", "What happens if I set the temperature to 0?"),
    ("e429", "My client got a 429 just now"),
    ("e429", "I keep getting 429, what do I do?"),
    ("e503", "Every request gets a 503, why?"),
    ("e401", "It says 401 whatever I send"),
    ("e400", "I got status 400 back, why?"),
    ("e404", "Why would the server say 404?"),
    ("out_of_memory", "Can a request cause out of memory?"),
)
"""Topic key and a question as somebody types it, written after the corpus."""

UNKNOWN: Final = (
    "What is the capital of Portugal?",
    "Who painted the Mona Lisa?",
    "Write a poem about the ocean.",
    "How do I bake a cake?",
    "Tell me a joke about cats.",
    "What will the weather be like tomorrow?",
    "Who won the football match yesterday?",
    "What is the square root of 144?",
    "Translate good morning into French.",
    "Why is the sky blue?",
    "How far away is the moon?",
    "Can you recommend a good book?",
    "Write a Python function that sorts a list.",
    "When was Napoleon born?",
    "What should I cook tonight?",
    "How many legs has a spider?",
)
"""Questions to which the model must say that it is only a demonstration."""

SMALL_TALK: Final[dict[str, tuple[str, ...]]] = {
    "greet": ("Hello there, tiny", "Good morning!", "Hey, hello"),
    "thanks": ("Thanks, great", "Thank you so much"),
    "bye": ("Bye for now", "Goodbye, tiny"),
}


def held_out() -> frozenset[str]:
    """Every held-out question, normalised: what the corpus must not contain."""
    everyday = [text for _, text in EVERYDAY]
    groups = [*QUESTIONS.values(), everyday, UNKNOWN, *SMALL_TALK.values()]
    return frozenset(normalised(text) for group in groups for text in group)
