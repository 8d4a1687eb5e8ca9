"""Configurations measured in processes that take turns, and what is known of them afterwards."""
