"""Who computes the answers: the options that every verb shares which can have them from a server. Loads nothing heavy."""

import os
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import urlsplit

from tokendeep.errors import InputError, check_least, flag
from tokendeep.models.options import advanced, loading

LOCAL = "local"
ANSWER = 1800  # seconds for an answer, which may wait in the server's own queue
IN_FLIGHT = 128  # requests that one server has at once; it makes batches of them
LOADING = ("dtype", "device", "device_map", "allow_pickle")  # settings of weights that are loaded here
FREE = ("servers", "repeats", "stops", "scores", "picks")  # of a handshake: what a run that goes on may find otherwise
NO_SERVER = "give the address of a server of completions, such as http://localhost:8000/v1"


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Where the model is that answers."""

    engine: Annotated[
        str,
        loading(help="Who answers: local, or the address of a server (http://HOST:PORT/v1)."),
    ] = LOCAL
    engine_model: Annotated[str | None, advanced(help="What the server calls the model, where it serves several.")] = (
        None
    )
    api_key_env: Annotated[
        str | None, advanced(help="Name of the environment variable that holds the server's key.")
    ] = None
    in_flight: Annotated[int, advanced(help="Requests that one server has at once.")] = IN_FLIGHT
    answer_timeout: Annotated[
        int, advanced(help="Seconds that one answer of a server may take, its wait in the server's own queue included.")
    ] = ANSWER

    @property
    def served(self) -> bool:
        """Whether a server answers."""
        return self.engine != LOCAL

    def check_engine(self, loading: object) -> None:
        """Raises InputError for what is no address, a key that is not set, and settings of another engine.

        Args:
            loading: the options by which a model is loaded here.
        """
        from tokendeep.models.options import ModelOptions

        check_least(self, {"in_flight": 1, "answer_timeout": 1})
        if not self.served:
            for name in ("engine_model", "api_key_env"):
                if getattr(self, name) is not None:
                    raise InputError(f"{flag(name)} is for a server: name it with --engine, or leave it out.")
            return
        addresses(self.engine)
        if self.api_key_env is not None:
            key(self.api_key_env)
        for name in LOADING:
            if getattr(loading, name) != getattr(ModelOptions(), name):
                raise InputError(
                    f"{flag(name)} is for weights that are loaded here: set it where {self.engine} is served."
                )

    def recorded(self) -> dict[str, Any]:
        """The engine as a manifest keeps it: a server may be another one the next time, what it is stands beside it."""
        return {"engine": "server" if self.served else LOCAL}


def addresses(text: str) -> list[str]:
    """The servers in `http://HOST:PORT/v1,...`. Raises InputError for what is no address."""
    urls = []
    for one in filter(None, (part.strip().rstrip("/") for part in text.split(","))):
        try:
            parts = urlsplit(one)
            known = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        except ValueError:
            known = False
        if not known or parts.query or parts.fragment:
            raise InputError(f"The engine {one} is neither local nor an address: {NO_SERVER}.")
        if parts.username or parts.password:
            raise InputError(
                "The address of the engine holds a password, which would be written down: use --api-key-env."
            )
        urls.append(one if parts.path else f"{one}/v1")
    if not urls or len(set(urls)) < len(urls):
        raise InputError(f"The engine {text!r} names {'a server twice' if urls else 'no server'}: {NO_SERVER}.")
    return urls


def key(name: str, option: str = "--api-key-env") -> str:
    """The key in an environment variable that an option names. Raises InputError where there is none."""
    found = os.environ.get(name, "").strip()
    if not found:
        raise InputError(f"The environment variable {name}, which {option} names, is not set: put the key into it.")
    return found
