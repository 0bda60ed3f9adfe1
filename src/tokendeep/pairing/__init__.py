"""Two sides on the same prompts: which of them are alike enough, how much a share has changed, whether that is within a limit.

Knows nothing of folders, logs or pages; the report's tests by prompt build on the same pairs.
"""
