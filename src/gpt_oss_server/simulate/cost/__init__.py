"""What a model costs on GPUs: bytes, operations and seconds of a step; what fits."""
