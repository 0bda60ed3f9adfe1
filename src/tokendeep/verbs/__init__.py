"""What a user can do: one file a verb."""
