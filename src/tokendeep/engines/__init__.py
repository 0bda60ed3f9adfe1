"""What continues token ids, in process or elsewhere. `base` says what every engine takes and gives."""
