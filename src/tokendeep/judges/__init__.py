"""What an answer is: refused, complied, something else; and how well it does a task."""
