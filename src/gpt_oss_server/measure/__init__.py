"""Measures a running OpenAI-compatible server from outside: what it says of itself, how fast it is.

Knows: HTTP, prompts, closed loops of clients, clocks. Does not know: what the figures are for
(`simulate.calibrate`), nor any one server's code.
"""
