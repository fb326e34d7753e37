"""Decisions: pure, synchronous functions over data, with the clock passed in.

Imports `schemas` only. Nothing here reads a clock, a socket, a file or a random source, so the same input always gives the same
decision. Start with `intake`, then `gate`, `ledger`, `order`, `execution` and `settlement`.
"""
