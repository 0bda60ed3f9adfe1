"""Results of runs as one page."""
