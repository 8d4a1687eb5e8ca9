"""Measurements as data."""
