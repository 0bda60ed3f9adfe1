"""Attacks at inference time, as functions from prompts to prompts; and the rows of poisoning."""
