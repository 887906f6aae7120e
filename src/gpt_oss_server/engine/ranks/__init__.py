"""One model over several ranks: where each stands, how they talk, what each holds.

Knows: tensor and pipeline parallel ranks, cutting weights, one process over several devices.
Does not know: queues, the batcher, sampling.
"""
