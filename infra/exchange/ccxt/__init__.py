"""Exchanges over ccxt: what leaves, what comes back, and what it proves."""
