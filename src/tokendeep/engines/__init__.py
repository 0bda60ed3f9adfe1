"""What continues token ids."""
