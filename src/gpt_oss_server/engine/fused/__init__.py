"""Forward passes written for one architecture each, of few launches.

Nothing here is imported unless Triton can be used; transformers' modules are the yardstick.
"""
