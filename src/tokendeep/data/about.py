"""What a record says of itself beside its conversation: its id, its category, and whether it is harmless.

Knows nothing of messages and answers.
"""

from typing import Any

from tokendeep.data.known import HARMFUL, HARMLESS, harmless
from tokendeep.data.messages import checked_text
from tokendeep.data.row import Row, of_dataset, type_name
from tokendeep.errors import InputError


def row_id(row: Row) -> str:
    """The id as a text; "" where there is none. Raises InputError for another type."""
    value = row.values.get("id")
    if value is None:
        return ""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return checked_text(value, "id", row.where)


def meta(row: Row) -> dict[str, Any]:
    """The column `meta`, with `category` and `harmless` where the record says them. Raises InputError for a wrong one."""
    given = row.values.get("meta")
    if given is not None and not isinstance(given, dict):
        raise InputError(f"{row.where}: 'meta' must be an object, not {type_name(given)}; write it as {{...}}.")
    return {**(given or {}), **_category(row), **_label(row)}


def _category(row: Row) -> dict[str, str]:
    """What kind of request it is; a number is its own name."""
    category = row.values.get("category")
    if category in (None, ""):
        return {}
    if isinstance(category, int | float) and not isinstance(category, bool):
        return {"category": str(category)}
    return {"category": checked_text(category, "category", row.where)}


def _label(row: Row) -> dict[str, bool]:
    """Whether a request is harmless; other labels say nothing where nobody can be asked to change them."""
    label, columns = row.values.get("label"), row.origin.columns
    said = harmless(label)
    if said is not None:
        return {"harmless": said}
    if label in (None, "") or ((row.origin.hub or columns) and "label" not in columns):
        return {}
    words = ", ".join((*HARMLESS[:3], *HARMFUL[:3]))
    way = "say with --columns which columns are meant (such as instruction=NAME), so that other labels are left out"
    raise InputError(
        f"{row.where}: 'label' says whether a request is harmless, with one of {words}; change it, or "
        f"{of_dataset('label') if row.origin.trainer else way}."
    )
