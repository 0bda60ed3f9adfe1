"""Forward passes: scores, gradients and the language-model head on chosen positions."""
