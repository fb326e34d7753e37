"""Trades: accepted, sent, settled, canceled."""
