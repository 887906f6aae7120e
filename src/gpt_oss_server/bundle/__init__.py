"""The debug bundle: all that helps to find out what is wrong with a server, and nothing else.

Shown is what is on a list of things that may be shown; what is new is hidden until somebody puts
it there. Never prompts, answers, keys, users or sessions.
"""
