"""Administer"""
