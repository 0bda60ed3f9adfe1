"""What a completion did with its request, told from its text alone: the project's own offline judge."""
