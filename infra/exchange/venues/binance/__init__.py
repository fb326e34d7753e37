"""Binance and Binance.US."""
