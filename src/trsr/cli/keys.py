"""`trsr keys`: manage the API keys in a service's database."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Annotated

import typer

from trsr.errors import ConfigError, DataError

keys_app = typer.Typer(
    name="keys",
    no_args_is_help=True,
    help="Create, list and remove API keys: `trsr keys add out/demo --name shop --scope rank,events`.",
)
Served = Annotated[
    Path | None, typer.Argument(help="Run folder, or model folder, as for serve.", show_default=False)
]
Database = Annotated[
    Path | None,
    typer.Option(
        "--db", help="Database of users; serve.sqlite in MODEL_OR_RUN by default.", show_default=False
    ),
]
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
_SECONDS = {"h": 3600, "d": 86_400}


@keys_app.command("add")
def add(
    name: Annotated[str, typer.Option(help="Name of the key, for the list and the log.")],
    scope: Annotated[str, typer.Option(help="rank, events or admin, separated by commas.")],
    model_or_run: Served = None,
    user_prefix: Annotated[
        str, typer.Option(help="Allow only users whose ids begin with this.", show_default=False)
    ] = "",
    expires: Annotated[
        str | None, typer.Option(help="Time until it expires: 90d, 12h.", show_default=False)
    ] = None,
    db: Database = None,
) -> None:
    """Create a key and print it once; a running server accepts it within a second.

    Example: trsr keys add out/demo --name shop --scope rank,events --expires 90d
    """
    from trsr.serve.database import add_key
    from trsr.serve.settings import ADMIN, SCOPES, Key, key_hash, new_key

    if not _NAME.fullmatch(name):
        raise ConfigError(f"Found the name {name!r}; use up to 64 letters, digits, - and _, a letter first.")
    scopes = frozenset(part.strip() for part in scope.split(","))
    if unknown := sorted(scopes - set(SCOPES)):
        raise ConfigError(f"Found the scope {unknown[0]!r}; expected some of {', '.join(SCOPES)}.")
    if ADMIN in scopes and user_prefix:
        raise ConfigError("Found --user-prefix with the scope admin, which allows everything; leave one out.")
    until = None if expires is None else time.time() + _seconds(expires)
    key = new_key()
    add_key(_database(model_or_run, db), Key(name, key_hash(key), scopes, user_prefix, until))
    typer.echo("The key, shown only now:", err=True)
    typer.echo(key)


@keys_app.command("list")
def list_keys(model_or_run: Served = None, db: Database = None) -> None:
    """List the keys: name, scopes, users, expiry.

    Example: trsr keys list out/demo
    """
    from trsr.serve.database import read_keys

    for key in read_keys(_existing(model_or_run, db)):
        users = f"users {key.user_prefix}*" if key.user_prefix else "all users"
        expiry = f"expired {key.expiry}" if key.expired else f"expires {key.expiry}"
        typer.echo(f"{key.name}: {','.join(sorted(key.scopes))}; {users}; {expiry}")


@keys_app.command("remove")
def remove(
    name: Annotated[str, typer.Argument(help="Name of the key.", show_default=False)],
    model_or_run: Served = None,
    db: Database = None,
) -> None:
    """Remove a key; a running server refuses it within a second.

    Example: trsr keys remove shop out/demo
    """
    from trsr.serve.database import remove_key

    database = _existing(model_or_run, db)
    if not remove_key(database, name):
        raise DataError(f"{database} has no key {name!r}; see `trsr keys list`.")


def _database(model_or_run: Path | None, db: Path | None) -> Path:
    if db is not None:
        return db
    if model_or_run is None or not model_or_run.is_dir():
        raise ConfigError(
            f"Found {'no folder' if model_or_run is None else f'no folder {model_or_run}'}; give the "
            "served run or model folder, or its database with --db."
        )
    return model_or_run / "serve.sqlite"


def _existing(model_or_run: Path | None, db: Path | None) -> Path:
    if not (database := _database(model_or_run, db)).is_file():
        raise DataError(f"There is no database {database}; check the path.")
    return database


def _seconds(expires: str) -> int:
    match = re.fullmatch(r"([1-9][0-9]{0,4})([dh])", expires)
    if match is None:
        raise ConfigError(f"Found --expires {expires!r}; expected days or hours, such as 90d or 12h.")
    return int(match[1]) * _SECONDS[match[2]]
