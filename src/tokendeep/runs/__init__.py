"""Folders that hold a run: opening, going on, finishing, every file written and every hash."""

from tokendeep.runs import trained
from tokendeep.runs.files import (
    is_main_process,
    private_dir,
    read_jsonl,
    user_file,
    user_path,
    whole,
    write_json,
    write_jsonl,
    write_text,
)
from tokendeep.runs.folder import Run, amended, look, open_run, set_aside
from tokendeep.runs.identity import (
    fingerprint,
    hash_input,
    model_identity,
    seed,
    sha256,
    sha256_file,
    sha256_text,
    system_name,
)
