"""Fits the step formula to one measured server, and keeps what was found in a file.

Knows: closed loops and what came of them, the simulator as the model of a server. Does not know:
how a server is asked (`gpt_oss_server.measure`).
"""
