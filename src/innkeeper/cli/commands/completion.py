"""`inn completion`."""

from __future__ import annotations

import click

from innkeeper.cli.app import App
from innkeeper.cli.command import verb
from innkeeper.cli.output import print_json


@verb(
    "completion",
    synopsis="inn completion bash|zsh|fish [--json]",
    examples="""
inn completion bash > ~/.local/share/bash-completion/completions/inn
inn completion zsh > ~/.zfunc/_inn
inn completion fish > ~/.config/fish/completions/inn.fish
""",
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(app: App, shell: str) -> None:
    """Print the completion script for a shell.

    It completes commands, options, and the names of VMs and images.
    """
    from click.shell_completion import get_completion_class

    from innkeeper.cli.main import COMPLETE_VARIABLE
    from innkeeper.cli.root import cli

    found = get_completion_class(shell)
    assert found is not None
    completer = found(cli, {}, "inn", COMPLETE_VARIABLE)
    # Not completer.source(): for bash that runs the bash of this machine to ask for its version.
    script = completer.source_template % completer.source_vars()
    if app.json:
        print_json({"shell": shell, "script": script})
    else:
        print(script)
