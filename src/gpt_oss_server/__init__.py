"""OpenAI-compatible server for gpt-oss and other decoders that transformers loads."""

__version__ = "0.1.0"
