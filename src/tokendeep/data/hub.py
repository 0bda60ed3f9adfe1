"""Data sets on the Hugging Face hub as records; a file of a repository is fetched and read as a local one."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokendeep.data.files import SUFFIXES, suffix_of
from tokendeep.data.folders import hex_phi_rows, local_rows
from tokendeep.data.known import HEX_PHI, KNOWN, Known
from tokendeep.data.row import Origin, Row, without_index
from tokendeep.errors import InputError

HUB_SOURCE = re.compile(
    r"hf:(?P<repo>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>[^:]+))?(?::(?P<config>[^:]*))?(?::(?P<split>.+))?"
)
SPLITS = ("train", "test", "validation")
LABELS = {  # where the answers of people lie that a set of requests does not hold
    "JailbreakBench": "hf:jailbreakbench:judge_comparison:test",
    "HarmBench": "text_behaviors_val_set.json of its authors",
    "StrongREJECT": "labelbox.csv of its authors",
    "XSTest": "xstest_v2_completions_MODEL.csv of its authors",
}
LABEL_CONFIGS = ("judge_comparison",)

NAMES = {known.name.lower(): known for known in KNOWN if known.repo}


def known_of(repo: str) -> Known | None:
    """The public set in a repository, or of a name without an owner."""
    return NAMES.get(repo.lower()) or next((known for known in KNOWN if known.repo == repo), None)


def check_labels(spec: str, there: bool) -> None:
    """Raises InputError for a public set of requests in the place of its labels; `there`: a file has its name."""
    match = HUB_SOURCE.fullmatch(spec)
    known = known_of(match["repo"]) if match else None if there else NAMES.get(spec.lower())
    config = (match["config"] if match else None) or ""
    if known is None or config in LABEL_CONFIGS or suffix_of(Path(config)) in SUFFIXES:
        return
    what = (
        f"{spec} holds requests"
        if match
        else f"There is no file {spec}, and the public set of that name holds requests"
    )
    labels = LABELS.get(known.name)
    way = f"the labels of {known.name} are {labels}" if labels else "give a file with labels of people"
    raise InputError(f"{what}, which nobody has answered or labelled; {way}.")


def hub_rows(spec: str) -> Iterator[Row]:
    match = HUB_SOURCE.fullmatch(spec)
    known = known_of(match["repo"]) if match else None
    if match is None or (known is None and "/" not in match["repo"]):
        raise InputError(
            f"{spec} is no hub data set; write hf:owner/name[@revision][:config][:split], with the name of a public set alone "
            f"({', '.join(NAMES)}) where it is one."
        )
    repo, revision = known.repo if known else match["repo"], match["revision"]
    asked = revision or (known.revision if known else None)
    config, split = match["config"] or None, match["split"]
    if split is None and config in SPLITS:
        config, split = None, config
    if known and known.tables:  # files that `datasets` needs to be told how to read
        config = known.tables.get(config or known.config or "", config)
    if config and suffix_of(Path(config)) in SUFFIXES:
        return local_rows(_fetch(spec, repo, asked, file=config))
    if known is HEX_PHI:  # header-less CSV files, which `datasets` would read with their first prompt as the header
        rows = list(hex_phi_rows(_fetch(spec, repo, asked, pattern="category_*.csv")))
        _check_count(spec, known, "", len(rows), revision)
        return iter(rows)
    config = config or (known.config if known else None)
    split = split or (known.split if known else "train")
    table, part = _load_dataset(spec, repo, config, split, asked), f"{config or ''}/{split}"
    if known:
        _check_count(spec, known, part, len(table), revision)
    origin = Origin(spec, known, hub=True, part=part, table=True)
    return (Row(n, f"{spec}, row {n}", without_index(values), origin) for n, values in enumerate(table, 1))


def _load_dataset(spec: str, repo: str, config: str | None, split: str, revision: str | None) -> Any:
    import datasets

    try:
        return datasets.load_dataset(repo, config, split=split, revision=revision)
    except Exception as error:  # network, login, name, split and file format all fail here, each in its own way
        raise _hub_error(spec, error) from error


def _fetch(spec: str, repo: str, revision: str | None, *, file: str = "", pattern: str = "") -> Path:
    """Download one file, or the files of a pattern, of a data set repository; returns the file or the folder."""
    import huggingface_hub

    try:
        if file:
            return Path(huggingface_hub.hf_hub_download(repo, file, repo_type="dataset", revision=revision))
        return Path(
            huggingface_hub.snapshot_download(repo, repo_type="dataset", revision=revision, allow_patterns=[pattern])
        )
    except Exception as error:  # as above
        raise _hub_error(spec, error) from error


def _hub_error(spec: str, error: Exception) -> InputError:
    lines = str(error).strip().splitlines()
    reason = f"{type(error).__name__}: {lines[0][:200].rstrip('. ')}" if lines else type(error).__name__
    match = HUB_SOURCE.fullmatch(spec)
    known = known_of(match["repo"]) if match else None
    gate = f" (https://huggingface.co/datasets/{known.repo}; {known.get})" if known and known.get else ""
    return InputError(
        f"{spec} could not be loaded ({reason}); check its name, the network and, for a gated set, your login (hf auth "
        f"login), or download it and give the file{gate}."
    )


def _check_count(spec: str, known: Known, part: str, count: int, revision: str | None) -> None:
    """A public set that has changed its size is not the set that published numbers are about."""
    expected = (known.counts or {}).get(part)
    if revision is None and expected and count not in expected:
        raise InputError(
            f"{spec} has {count} rows and {known.name} should have {' or '.join(map(str, expected))}; "
            "name the revision you mean (hf:owner/name@revision)."
        )
