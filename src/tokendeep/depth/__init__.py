"""How many tokens deep safety goes."""
