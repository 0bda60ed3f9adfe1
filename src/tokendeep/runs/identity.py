"""What identifies a model or a file: names that stand for known bytes, and hashes."""

SMOLLM2 = "smollm2"  # the packaged demo model, by its name
PACKAGED = {SMOLLM2: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"}
