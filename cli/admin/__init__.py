"""Administering users, keys, limits, addresses and balances."""
