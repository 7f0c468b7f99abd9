"""Runs the linear history of revisions on each database: all of them on the columns, then on the metadata.

Called by the `alembic` command, for which it opens the databases that `repo.schema.databases` finds, and by
`repo.schema.runner`, which passes an open connection. Each database has its own `alembic_version`.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from logging.config import fileConfig
from pathlib import Path
from typing import Any

from alembic import context
from alembic.util import CommandError
from sqlalchemy import Connection, create_engine

from repo.engines.base import READ
from repo.engines.registry import engine_named, traits_of
from repo.errors import HoldfastError, SchemaOutdated
from repo.models import MetadataBase, TimeSeriesBase
from repo.schema import counting
from repo.schema.databases import Target, find_targets, held
from repo.schema.runner import typed_errors  # also registers DuckDB with Alembic
from repo.schema.version import too_new, version_of

log = logging.getLogger("alembic.runtime.migration")
config = context.config
MODELS = {"metadata": MetadataBase.metadata, "timeseries": TimeSeriesBase.metadata}
WRITING = {"upgrade", "downgrade", "stamp", "ensure_version"}
CHANGING = {"upgrade", "downgrade"}
COMPARING = {"check", "revision"}
BOTH_OR_NONE = {"downgrade", "stamp"}
PRINTING = {"current", "history"}
OWN = {"table", "column", "index"}
REMOVES = context.get_x_argument(as_dictionary=True).get("remove", "").lower() in ("true", "1", "yes")
IN_FILE = ("path", "metadata.url", "timeseries.url")


def command_name() -> str:
    """Return the name of the running Alembic command; "" if unknown."""
    chosen = getattr(config.cmd_opts, "cmd", None)
    return config.attributes.get("command") or (chosen[0].__name__ if chosen else "")


def include_object(thing: Any, name: str | None, kind: str, reflected: bool, other: Any) -> bool:
    """Exclude from the comparison what the models declare for another engine only, and what is a user's own.

    A table, column or index that no model has may be a user's own: it is named in the log, and kept, unless
    `-x remove=true` asks for what a revision would remove, as for a developer who took it out of the models.
    """
    if reflected and other is None and kind in OWN and "connections" not in config.attributes and not REMOVES:
        table = getattr(thing, "table", None)
        where = f" of {table.name}" if table is not None else ""
        log.info("The %s %s%s is in no model and stays; -x remove=true removes it", kind, name, where)
        return False
    condition = getattr(thing, "_ddl_if", None)
    wanted = None if condition is None else condition.dialect
    return kind != "index" or reflected or wanted in (None, context.get_context().dialect.name)


def number(_context: Any, _revision: Any, directives: list[Any]) -> None:
    """Number a new revision after the last one, unless an id was given."""
    if getattr(config.cmd_opts, "rev_id", None) is None:
        directives[0].rev_id = f"{int(context.script.get_current_head() or 0) + 1:04}"


def configure(database: str, **given: Any) -> None:
    """Configure Alembic for one database: its models, and one transaction per migration."""
    context.configure(
        target_metadata=MODELS[database],
        upgrade_token=f"{database}_upgrades",
        downgrade_token=f"{database}_downgrades",
        transactional_ddl=True,
        transaction_per_migration=True,
        render_as_batch=False,
        include_object=include_object,
        process_revision_directives=number,
        **given,
    )


def run(database: str, connection: Connection) -> None:
    """Run the command on one database."""
    checks = counting.compared(connection) if command_name() == "upgrade" else ()
    configure(database, connection=connection, on_version_apply=checks)
    with context.begin_transaction():
        context.run_migrations(database=database)


def run_all(connections: dict[str, Connection], paths: dict[str, Path]) -> None:
    """Run the command on each database, and checkpoint its changes, even if the command fails halfway."""
    before = config.attributes.get("before") or (versions(connections) if command_name() in WRITING else {})
    try:
        with ExitStack() as both:
            if command_name() in BOTH_OR_NONE:
                # Neither database commits before both are done, so a refusal leaves both unchanged.
                for connection in connections.values():
                    both.enter_context(connection.begin())
            for database, connection in connections.items():
                if command_name() in PRINTING:
                    config.print_stdout("%s (%s):", database, paths.get(database, ""))
                if database in paths:
                    log.info("The %s database, %s", database, paths[database])
                with typed_for(paths.get(database), connection):
                    run(database, connection)
    except BaseException:
        # Some revisions may be complete. The original error is raised; a failed engine may not be able to checkpoint.
        with suppress(Exception):
            after = versions(connections)
            checkpoint_all({name: connections[name] for name in before if after[name] != before[name]})
        raise
    checkpoint_all(connections)


def versions(connections: dict[str, Connection]) -> dict[str, str | None]:
    """Return the revision that each database is at; ends their transactions."""
    found = {}
    for database, connection in connections.items():
        connection.rollback()
        found[database] = version_of(connection)
        connection.rollback()
    return found


def checkpoint_all(connections: dict[str, Connection]) -> None:
    """Checkpoint schema changes that a log could not replay, after a command that writes."""
    for connection in connections.values():
        if command_name() in WRITING:
            traits_of(connection).checkpoint_ddl(connection)


@contextmanager
def typed_for(path: Path | None, connection: Connection) -> Iterator[None]:
    """Translate an error of the engine to a typed one that names the file; calls into the library already do so."""
    if path is None:
        yield
    else:
        with typed_errors(connection.engine, path):
            yield


def require_known(connection: Connection, path: Path) -> None:
    """Refuse a database of a newer program, and a comparison with the models if the database is not at the head."""
    found = version_of(connection)
    connection.rollback()
    known = {script.revision for script in context.script.walk_revisions()}
    if found is not None and found not in known and not getattr(config.cmd_opts, "purge", False):
        raise too_new(found, path)
    head = context.script.get_current_head()
    if command_name() in COMPARING and found != head:
        at = "has no schema version yet" if found is None else f"is at schema version {found}"
        raise SchemaOutdated(f"{path} {at}, not {head}; run `alembic upgrade head` first", path=path)


def run_command(targets: list[Target]) -> None:
    """Open the databases under their leases, for a run from the command line."""
    options = {} if command_name() in WRITING else READ
    for target in targets:
        target.require(create=command_name() == "upgrade")
    with ExitStack() as stack:
        stack.enter_context(held(targets))
        for target in targets:
            if command_name() in CHANGING:
                # A running program would find its tables changed.
                target.wait_until_unused(
                    context.script.get_current_head() if command_name() == "upgrade" else None
                )
        connections = {}
        for target in targets:
            engine = stack.enter_context(target.opened()).execution_options(**options)
            with typed_errors(engine, target.path):
                connections[target.database] = stack.enter_context(engine.connect())
                require_known(connections[target.database], target.path)
        run_all(connections, {target.database: target.path for target in targets})


def needs_no_database() -> bool:
    """Return whether the command runs only because of `revision_environment`, which numbers its new revision."""
    wanted = {"revision": "autogenerate", "history": "indicate_current"}.get(command_name(), "")
    return command_name() == "merge" or getattr(config.cmd_opts, wanted, None) is False


def run_without_database() -> None:
    """Run a command that needs only the scripts."""
    engine = create_engine("sqlite://")
    with engine.connect() as connection:
        configure("metadata", connection=connection)
        with context.begin_transaction():
            context.run_migrations(database="metadata")
    engine.dispose()


def run_offline(targets: list[Target]) -> None:
    """Print the SQL that the command would run, without opening a database."""
    for target in targets:
        configure(target.database, url=engine_named(target.engine).traits().url, literal_binds=True)
        context.get_context().impl.static_output(f"-- {target.database}: {target.engine}, {target.path}")
        with context.begin_transaction():
            context.run_migrations(database=target.database)


if "connections" in config.attributes:
    run_all(config.attributes["connections"], {})
elif needs_no_database():
    run_without_database()
else:
    if config.config_file_name is not None:
        fileConfig(config.config_file_name, disable_existing_loggers=False)
    try:
        # Raw, because a % in a path is literal, and Alembic cannot interpolate in a folder whose name contains one.
        in_file = {n: config.file_config.get("alembic", n, raw=True, fallback="") for n in IN_FILE}
        chosen = find_targets(context.get_x_argument(as_dictionary=True), os.environ, in_file)
        (run_offline if context.is_offline_mode() else run_command)(chosen)
    except HoldfastError as error:
        raise CommandError(str(error)) from error
