"""What Inspect AI loads through its entry-point group: importing them registers provider, solver, judges and tasks."""

from tokendeep.evals.classifier import provider as classifier
from tokendeep.evals.provider import provider
from tokendeep.evals.scorers import SCORERS
from tokendeep.evals.solver import prefixed
from tokendeep.evals.tasks import TASKS

__all__ = ["SCORERS", "TASKS", "classifier", "prefixed", "provider"]
