"""How commands look to a person: a lazily loaded table of verbs, and help pages with sections."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final, NoReturn

import click
from click.shell_completion import CompletionItem

from innkeeper.cli.app import App

EXIT_STATUS: Final[Mapping[int, str]] = {
    0: "Done.",
    1: "It was tried and failed.",
    2: "Bad usage, or an error in a specification.",
    3: "No such instance, image or file.",
    4: "Refused: a conflict, no capacity, or not supported here.",
}
CONTEXT: Final[dict[str, Any]] = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class InnCommand(click.Command):
    """A verb. `tail` is a usage like `-- CMD...`: what follows `--` is not looked at here."""

    synopsis: str = ""
    examples: str = ""
    exit_status: Mapping[int, str] = EXIT_STATUS
    tail: bool = False
    # Without --, what follows the first argument is not looked at, either.
    own_options_first: bool = False

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if self.tail:
            rest: list[str] = []
            if "--" in args:
                cut = args.index("--")
                args, rest = args[:cut], args[cut + 1 :]
                ctx.meta["innkeeper.tail_given"] = True
            ctx.meta["innkeeper.tail"] = rest
            if self.own_options_first and "innkeeper.tail_given" not in ctx.meta:
                ctx.allow_interspersed_args = False
        return super().parse_args(ctx, args)

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_opening(formatter, ctx.command_path, self.help, self.synopsis)
        self.format_options(ctx, formatter)
        write_sections(formatter, self.examples, self.exit_status)


def write_opening(formatter: click.HelpFormatter, path: str, text: str | None, synopsis: str) -> None:
    summary, _, description = inspect.cleandoc(text or "").partition("\n\n")
    formatter.write(f"{path} - {' '.join(summary.split()).rstrip('.')}\n")
    with formatter.section("Synopsis"):
        for line in synopsis.splitlines():
            formatter.write(f"{'':>{formatter.current_indent}}{line}\n")
    if description.strip():
        with formatter.section("Description"):
            formatter.write_text(description)


def write_sections(formatter: click.HelpFormatter, examples: str, exit_status: Mapping[int, str]) -> None:
    if examples:
        with formatter.section("Examples"):
            for line in examples.strip("\n").splitlines():
                formatter.write(f"{'':>{formatter.current_indent}}{line}\n")
    with formatter.section("Exit status"):
        formatter.write_dl([(str(status), meaning) for status, meaning in sorted(exit_status.items())])


def verb(
    name: str,
    *,
    synopsis: str,
    examples: str,
    exit_status: Mapping[int, str] | None = None,
    tail: bool = False,
    json_option: bool = True,
) -> Callable[[Callable[..., Any]], InnCommand]:
    """Make a function a command. Its docstring is the summary, an empty line, and the description; it
    is called with the App and its options."""

    def decorate(function: Callable[..., Any]) -> InnCommand:
        @functools.wraps(function)
        def callback(*args: Any, **kwargs: Any) -> Any:
            return function(click.get_current_context().find_object(App), *args, **kwargs)

        command = click.command(name, cls=InnCommand, context_settings=CONTEXT)(callback)
        if json_option:
            command.params.append(_json_option())
        command.short_help = " ".join((function.__doc__ or "").partition("\n\n")[0].split())
        command.synopsis, command.examples, command.tail = synopsis, examples, tail
        command.exit_status = {**EXIT_STATUS, **(exit_status or {})}
        return command

    return decorate


def _json_option() -> click.Option:
    def remember(ctx: click.Context, param: click.Parameter, value: bool) -> None:
        app = ctx.find_object(App)
        if value and app is not None:
            app.json = True

    return click.Option(
        ["--json"],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=remember,
        help="Print JSON with stable keys.",
    )


def tail_of(ctx: click.Context) -> list[str]:
    """What followed `--`."""
    tail: list[str] = ctx.meta.get("innkeeper.tail", [])
    return tail


Table = Mapping[str, tuple[str, str]]


class LazyGroup(click.Group):
    """Commands from a table: name -> (module, summary). A module is imported when its command runs;
    listing and completing names imports none."""

    table: ClassVar[Table]
    examples: str = ""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.table:
            return None
        import importlib

        module = importlib.import_module(f"innkeeper.cli.commands.{self.table[cmd_name][0]}")
        for value in vars(module).values():
            if isinstance(value, click.Command) and value.name == cmd_name:
                return value
        raise LookupError(f"{module.__name__} has no command {cmd_name}")

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.table and not args[0].startswith("-"):
            _no_such_command(ctx, args[0], list(self.table))
        return super().resolve_command(ctx, args)

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        path = ctx.command_path
        write_opening(formatter, path, self.help, f"{path} [OPTIONS] COMMAND [ARGS]...")
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in self.table.items()])
        click.Command.format_options(self, ctx, formatter)
        write_sections(formatter, self.examples, EXIT_STATUS)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        if incomplete.startswith("-"):
            return click.Command.shell_complete(self, ctx, incomplete)
        found = [(name, summary) for name, (_, summary) in self.table.items() if name.startswith(incomplete)]
        return [CompletionItem(name, help=summary) for name, summary in found]


def _no_such_command(ctx: click.Context, name: str, known: list[str]) -> NoReturn:
    import difflib

    near = difflib.get_close_matches(name, known, n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise click.UsageError(f"No such command: {name}{hint}", ctx)


def complete_instances(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of instances, for the shell: quick or not at all, and without starting a daemon."""
    app = ctx.find_object(App) or App()
    try:
        data = app.quiet_client().transport.json("GET", "/v1/instances", timeout_s=1.0)
        return [
            CompletionItem(item["name"], help=item.get("state", ""))
            for item in data["instances"]
            if item["name"].startswith(incomplete)
        ]
    except Exception:
        return []


def complete_images(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    app = ctx.find_object(App) or App()
    try:
        names = [image["name"] for image in app.quiet_client().images.list()]
    except Exception:
        return []
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def name_argument(function: Callable[..., Any]) -> Callable[..., Any]:
    """NAME: one instance."""
    return click.argument("name", metavar="NAME", shell_complete=complete_instances)(function)


def names_argument(function: Callable[..., Any]) -> Callable[..., Any]:
    """NAME...: at least one instance."""
    return click.argument(
        "names", metavar="NAME...", nargs=-1, required=True, shell_complete=complete_instances
    )(function)
