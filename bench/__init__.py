"""Benchmarks: how many requests a second, how long one takes, at what cost, beside two baselines. Start with `run`."""
