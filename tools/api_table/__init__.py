"""Writes docs/api.md: what becomes of every parameter that OpenAI's client knows.

Knows: how to lay the page out. The parameters come from the types of the installed `openai`
package, what becomes of them from `claims`; a test sends each one to a server.
"""
