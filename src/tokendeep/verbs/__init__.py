"""What a user can do: one file a verb."""

VERBS = {  # verb: its module, and its line in `tokendeep --help`
    "demo": ("tokendeep.verbs.demo", "The whole story on the packaged real model; ends with a report."),
    "pairs": ("tokendeep.verbs.pairs", "Pairs of requests and answers from requests alone, for measure and attack."),
    "measure": ("tokendeep.verbs.measure", "How many tokens deep a model's safety goes."),
    "attack": ("tokendeep.verbs.attack", "Attack a model at inference time and judge its answers."),
    "judge": ("tokendeep.verbs.judge", "Judge the answers of an attack again, by other judges; nothing is generated."),
    "gcg": ("tokendeep.verbs.gcg", "Find adversarial suffixes by gradient; attack --attack suffix tries them."),
    "deepen": ("tokendeep.verbs.deepen", "Train a model to recover to a refusal at any depth."),
    "audit": ("tokendeep.verbs.audit", "Which rows of a data set push on refusals, before training on them."),
    "finetune": ("tokendeep.verbs.finetune", "Fine-tune on your data while protecting the first answer tokens."),
    "mend": ("tokendeep.verbs.mend", "Bring back safety that fine-tuning has undone, in a few steps."),
    "poison": ("tokendeep.verbs.poison", "Attack a model by fine-tuning, and compare objectives that resist."),
    "calibrate": ("tokendeep.verbs.calibrate", "How far a judge agrees with people's labels."),
    "compare": ("tokendeep.verbs.compare", "Two models on the same prompts: paired tests, intervals, power."),
    "gate": ("tokendeep.verbs.gate", "For continuous integration: is a change within its limits?"),
    "overlap": ("tokendeep.verbs.overlap", "Requests that two data files share, by ids and hashes."),
    "parity": ("tokendeep.verbs.parity", "Two engines on the same token ids: answers and log-probabilities."),
    "report": ("tokendeep.verbs.report", "One HTML file from the folders of earlier runs."),
}
