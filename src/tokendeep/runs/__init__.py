"""Folders that hold a run: opening, going on, finishing, and every file written."""

from tokendeep.runs.folder import (
    Run,
    explain,
    guarded,
    hash_input,
    is_main_process,
    memory_full,
    model_identity,
    open_run,
    private_dir,
    sha256_file,
    write_json,
    write_jsonl,
    write_text,
)

__all__ = [
    "Run",
    "explain",
    "guarded",
    "hash_input",
    "is_main_process",
    "memory_full",
    "model_identity",
    "open_run",
    "private_dir",
    "sha256_file",
    "write_json",
    "write_jsonl",
    "write_text",
]
