"""The parts of `benchmarks/gpu/run.py`: one GPU, gpt-oss-20b's shape, every row of the table."""
