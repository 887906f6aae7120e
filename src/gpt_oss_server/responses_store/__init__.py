"""Where answers of `/v1/responses` are kept, so that a later request can build on them.

Knows: a bounded table of JSON texts on one machine. Does not know: HTTP, what a response or an
item means, models.
"""
