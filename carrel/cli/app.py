"""The commands and their options. Each loads what it needs when it runs, so that ``carrel --help`` is quick.

What a command does is in a module of its name.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from carrel.cli.doctor_command import add_doctor
from carrel.cli.keys import keys_app
from carrel.cli.new import add_new
from carrel.cli.operating import add_commands
from carrel.cli.options import (
    STATE,
    STRATEGIES,
    AgentsOption,
    DataOption,
    HostOption,
    JsonOption,
    MtlsOption,
    PortOption,
    PostgresOption,
    RedisOption,
    ReplicasOption,
    StateOption,
    TokenOption,
    UrlOption,
    UserOption,
)

if TYPE_CHECKING:
    from carrel.cli.stack import StackOptions
    from carrel.cli.target import Target
    from carrel.errors import CarrelError

__all__ = ["app", "run"]

app = typer.Typer(
    name="carrel",
    help="Runs AI agents for many users at once, each with their own context, instance and event stream.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command()
def up(
    agents: AgentsOption = None,
    reload: Annotated[
        bool, typer.Option("--reload", help="Restart agent_instance when an agents file changes.")
    ] = False,
    no_packaged_agents: Annotated[
        bool, typer.Option("--no-packaged-agents", help="Load only what --agents names.")
    ] = False,
    state: StateOption = STATE,
    port: PortOption = 8080,
    host: HostOption = "127.0.0.1",
    data: DataOption = None,
    replicas: ReplicasOption = "",
    redis: RedisOption = "",
    postgres: PostgresOption = "",
    mtls: MtlsOption = False,
) -> None:
    """Start the services on this machine, and keep them running until Ctrl-C.

    One process each with stores in files, unless told otherwise.
    Further gateways listen on the ports after --port.
    Ends with 0 when it was stopped, 1 when it could not start, 2 for a wrong command line, 78 for wrong settings.
    Logs are for a terminal; CARREL_LOG_FORMAT=json gives one JSON object per line.
    """
    from carrel.cli import up as implementation

    packaged = not no_packaged_agents
    options = _options(
        state,
        host=host,
        port=port,
        agents=agents or (),
        packaged=packaged,
        data=data,
        replicas=replicas,
        redis=redis,
        postgres=postgres,
        mtls=mtls,
    )
    _finish(implementation.up(options, reload=reload))


@app.command("run")
def run_command(
    message: Annotated[str, typer.Argument(help="What is wanted, in words.")],
    agent: Annotated[str, typer.Option("--agent", help="The agent to ask; the deployment's own by default.")] = "",
    pipeline: Annotated[str, typer.Option("--pipeline", help="Several agents, separated by commas.")] = "",
    param: Annotated[
        list[str] | None,
        typer.Option(
            "--param", "-p", help="A parameter for the agents, name=value; JSON where it is JSON.", metavar="K=V"
        ),
    ] = None,
    thread: Annotated[str, typer.Option("--thread", help="The conversation to go on with.")] = "",
    strategy: Annotated[
        str,
        typer.Option(
            "--strategy",
            help="When the conversation has a run already: reject (the default), enqueue, interrupt or rollback.",
        ),
    ] = "",
    bound: Annotated[
        bool, typer.Option("--bound", help="The run ends when this command does, however it ends.")
    ] = False,
    save: Annotated[
        Path | None, typer.Option("--save", help="Folder for the artifacts; STATE/saved/RUN by default.", metavar="DIR")
    ] = None,
    timing: Annotated[bool, typer.Option("--timing", help="Show where the run's time went, at its end.")] = False,
    url: UrlOption = "",
    token: TokenOption = "",
    user: UserOption = "alice",
    state: StateOption = STATE,
    as_json: JsonOption = False,
) -> None:
    """Run agents on a message and show what they do; what they ask is answered here. Ctrl-C cancels the run.

    Ends with 0 when the run succeeded, 1 when it failed, 2 for a wrong command line, 3 when it was refused, 4 when it
    waits for an answer and there is no terminal to ask at: `carrel answer` gives it.
    A lost connection is made again; WEBSOCKET_MAX_RECONNECT_ATTEMPTS [3] attempts in a row may fail.
    """
    from carrel.cli.params import parse_params
    from carrel.cli.run import Wish, run_message

    if agent and pipeline:
        raise typer.BadParameter("give --agent or --pipeline, not both", param_hint="--pipeline")
    if strategy and strategy not in STRATEGIES:
        raise typer.BadParameter(f"must be one of {', '.join(STRATEGIES)}", param_hint="--strategy")
    try:
        params = parse_params(param or ())
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--param") from None
    names = tuple(name.strip() for name in pipeline.split(",") if name.strip())
    wish = Wish(message, params, agent, names, thread, save, strategy, bound, timing)
    _finish(run_message(wish, _target(url, token, user, state), as_json=as_json))


@app.command()
def answer(
    run: Annotated[str, typer.Argument(help="The run that waits.", metavar="RUN_ID")],
    words: Annotated[
        list[str] | None,
        typer.Argument(
            help="The answer: JSON or plain text, yes or no for an approval. The question's id before it, to be sure.",
            metavar="[INPUT_ID] VALUE",
        ),
    ] = None,
    url: UrlOption = "",
    token: TokenOption = "",
    user: UserOption = "alice",
    state: StateOption = STATE,
    as_json: JsonOption = False,
) -> None:
    """Answer the question of a run that waits; without VALUE the question is shown, and asked at a terminal.

    Ends with 0 when it was answered, 3 when it was refused, 4 when there was no VALUE and no terminal.
    Write -- before a VALUE that begins with a dash.
    """
    from carrel.cli.answer import answer_run

    if words and len(words) > 2:
        raise typer.BadParameter("give INPUT_ID and VALUE; quote a VALUE with spaces", param_hint="VALUE")
    _finish(answer_run(_target(url, token, user, state), run, words or (), as_json=as_json))


@app.command()
def cancel(
    run: Annotated[str, typer.Argument(help="The run to end.", metavar="RUN_ID")],
    reason: Annotated[str, typer.Option("--reason", help="Why, for the run's error and the audit.")] = "",
    url: UrlOption = "",
    token: TokenOption = "",
    user: UserOption = "alice",
    state: StateOption = STATE,
    as_json: JsonOption = False,
) -> None:
    """Cancel a run. One that has ended stays as it ended."""
    from carrel.cli.answer import cancel_run

    _finish(cancel_run(_target(url, token, user, state), run, reason, as_json=as_json))


@app.command()
def watch(
    run: Annotated[str, typer.Option("--run", help="Only this run, from its first event to its end.")] = "",
    thread: Annotated[str, typer.Option("--thread", help="Only this thread.")] = "",
    all_kept: Annotated[bool, typer.Option("--all", help="Begin with everything that the log keeps.")] = False,
    start: Annotated[
        str, typer.Option("--from", help="Begin after this position, or with oldest, as --all.", metavar="POSITION")
    ] = "",
    save: Annotated[
        Path | None,
        typer.Option(
            "--save-position",
            help="Keep the position of the last event shown in this file, and begin after it the next time.",
            metavar="FILE",
        ),
    ] = None,
    url: UrlOption = "",
    token: TokenOption = "",
    user: UserOption = "alice",
    state: StateOption = STATE,
    as_json: JsonOption = False,
) -> None:
    """Show a user's events as they come, until Ctrl-C.

    A lost connection is made again; WEBSOCKET_MAX_RECONNECT_ATTEMPTS [3] attempts in a row may fail. What cannot be
    had any more is said, never left out in silence.
    """
    from carrel.cli.watch import OLDEST, Watched, watch_events

    if run and thread:
        raise typer.BadParameter("give --run or --thread, not both", param_hint="--thread")
    if all_kept and start:
        raise typer.BadParameter("give --all or --from, not both", param_hint="--from")
    watched = Watched(run, thread, OLDEST if all_kept else start, save)
    _finish(watch_events(_target(url, token, user, state), watched, as_json=as_json))


@app.command()
def token(
    user: UserOption = "alice",
    permissions: Annotated[
        str, typer.Option("--permissions", help="Separated by commas; by default what the packaged agents need.")
    ] = "",
    ttl: Annotated[int, typer.Option("--ttl", min=1, max=30 * 86_400, help="Seconds until it ends.")] = 3600,
    state: StateOption = STATE,
) -> None:
    """Print a login token for development. Refused in production, where an issuer makes them."""
    from carrel.cli.state import StateFolder
    from carrel.cli.tokens import DEFAULT_PERMISSIONS, development_token
    from carrel.errors import CarrelError

    granted = tuple(name.strip() for name in permissions.split(",") if name.strip()) or DEFAULT_PERMISSIONS
    try:
        text = development_token(StateFolder(state).login_secret, user, permissions=granted, lifetime_s=ttl)
    except CarrelError as error:
        _fail(error)
    typer.echo(text)


@app.command()
def config(
    service: Annotated[
        str,
        typer.Argument(
            help="execution, agent_instance, emitter, bridge, gateway, doctor, operator or cli; by default all. Or"
            " features."
        ),
    ] = "",
    state: StateOption = STATE,
    as_json: JsonOption = False,
) -> None:
    """Show every setting: its value (secrets masked), where that comes from, and what it is.

    What a stack that runs in the state folder chose for its processes is shown as it is in effect there.
    """
    from carrel.cli.config import show_config

    raise typer.Exit(show_config(service, state, as_json=as_json))


@app.command()
def migrate(state: StateOption = STATE, redis: RedisOption = "", postgres: PostgresOption = "") -> None:
    """Bring the stores of execution and bridge to this version.

    Nothing may run on embedded ones meanwhile. A PostgreSQL database may be in use; then embedded stores of a stack
    that runs are left as they are. A log in Redis has nothing to migrate.
    """
    from carrel.cli.migrate import migrate_stores
    from carrel.errors import CarrelError

    try:
        code = migrate_stores(state, redis=redis, postgres=postgres)
    except CarrelError as error:
        _fail(error)
    raise typer.Exit(code)


@app.command()
def demo(
    once: Annotated[bool, typer.Option("--once", help="End with the two runs; otherwise the stack stays up.")] = False,
    state: StateOption = STATE,
    port: Annotated[
        int | None,
        typer.Option(
            "--port",
            min=0,
            max=65535,
            help="The gateway's port [8080, or a free one if taken; with --once a free one].",
        ),
    ] = None,
    agents: AgentsOption = None,
    data: DataOption = None,
) -> None:
    """Start the stack and let two users' agents do real work side by side, each seeing only their own events."""
    from carrel.cli.demo import run_demo

    chosen = port if port is not None else (0 if once else 8080)
    options = _options(state, port=chosen, agents=agents or (), data=data, yields=port is None)
    _finish(run_demo(options, once=once))


@app.command()
def version() -> None:
    """Print the version."""
    import platform

    import carrel

    typer.echo(f"carrel {carrel.__version__} (Python {platform.python_version()})")


add_doctor(app)
add_new(app)
add_commands(app)
app.add_typer(keys_app)


def run() -> None:
    """The entry point: what ``carrel`` and ``python -m carrel.cli`` run."""
    try:
        app(prog_name="carrel")
    except KeyboardInterrupt:
        sys.exit(130)


def _options(state: Path, **given: Any) -> StackOptions:
    from carrel.cli.stack import stack_options
    from carrel.errors import CarrelError

    try:
        return stack_options(state, **given)
    except CarrelError as error:
        _fail(error)


def _target(url: str, given: str, user: str, state: Path) -> Target:
    from carrel.cli.target import find_target
    from carrel.errors import CarrelError

    try:
        return find_target(url, given, user, state)
    except CarrelError as error:
        _fail(error)


def _finish(command: Coroutine[Any, Any, int]) -> None:
    """Run a command and end with its exit code; errors of the tree are printed with what to do."""
    from carrel.errors import CarrelError

    try:
        code = asyncio.run(command)
    except CarrelError as error:
        _fail(error)
    except asyncio.CancelledError:
        code = 130
    raise typer.Exit(code)


def _fail(error: CarrelError) -> NoReturn:
    from carrel.cli.output import Printer, exit_code_of

    Printer(sys.stderr).error(error)
    raise typer.Exit(exit_code_of(error))
