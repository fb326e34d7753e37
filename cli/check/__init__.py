"""Checking: doctor, verify, status, schemas."""
