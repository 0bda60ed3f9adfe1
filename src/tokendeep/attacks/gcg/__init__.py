"""Adversarial suffixes, found by gradient."""
