"""Withdrawals: accepted, approved, sent, settled."""
