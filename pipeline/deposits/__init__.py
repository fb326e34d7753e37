"""Deposits: announced, seen, credited, taken back."""
