"""The engine: token ids in, token ids out, through its own continuous batching.

A step reads: schedule (`batcher`), lay out the tensors (`step`), run the model and sample
(`runner`), record (`core`). `worker` runs that loop in its own process; `client` is the
front's end of it. Nothing here knows text or HTTP.
"""
