"""Operate"""
