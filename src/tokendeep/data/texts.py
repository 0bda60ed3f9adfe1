"""Plain documents: a text file is one, of other files the column `text` of each row."""

from pathlib import Path

from tokendeep.data.files import suffix_of, whole
from tokendeep.data.row import shown
from tokendeep.data.sources import Source, named, plain, read_rows
from tokendeep.errors import InputError
from tokendeep.runs import user_path


def read_texts(source: Source) -> list[str]:
    """The documents of a source, without those that hold nothing.

    Args:
        source: a .txt file, which is one document, or what `read_prompts` takes with a column `text`.

    Raises:
        InputError: a source that cannot be read, a row without `text`, or no document at all.
    """
    given = plain(source)
    if isinstance(given, str | Path) and suffix_of(Path(given)) == ".txt":
        texts = [whole(user_path(given))]
    else:
        texts = []
        for row in read_rows(source):
            if not isinstance(text := row.values.get("text"), str):
                have = ", ".join(map(shown, row.values))
                raise InputError(f"{row.where}: has no text in a column 'text', but {have}; name that column 'text'.")
            texts.append(text)
    if not (filled := [text for text in texts if text.strip()]):
        raise InputError(f"{named(source)} holds no text; give at least one document.")
    return filled
