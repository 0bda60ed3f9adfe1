"""The only place with Inspect AI."""
