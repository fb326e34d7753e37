"""Run here"""
