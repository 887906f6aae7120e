"""The HTTP surface: OpenAI's API over any `Engine` and any `ChatFormat`.

Knows: HTTP, OpenAI's request and response shapes, server-sent events. Does not know: torch,
transformers, how tokens are made or how a prompt is rendered; importing this package loads
neither library. `app.build_app` is the entrance, `services.Services` is all it needs.
"""
