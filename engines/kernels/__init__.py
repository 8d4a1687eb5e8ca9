"""Semantic-token kernels, one operator per file."""
