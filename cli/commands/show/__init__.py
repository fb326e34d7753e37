"""Look"""
