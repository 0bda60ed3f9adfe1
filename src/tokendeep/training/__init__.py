"""Rows and an objective to a checkpoint."""
