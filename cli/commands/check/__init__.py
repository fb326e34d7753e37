"""Check"""
