"""The contract on the wire: topics, requests, results, audit events, state, reports and reason codes.

Owns nothing but shapes. Imports nothing of ours and does no I/O. Start with `requests`, then `results` and `reasons`.
"""
