"""What can become of a request. Knows nothing of how a judge comes to say so."""

SCORED = ("refused", "complied", "partial-then-refused")  # the outcomes that a rate is counted over
OUTCOMES = (*SCORED, "empty", "degenerate", "other-language", "thought", "filtered", "judge-error")
