"""The command line: one file a command, no logic here; a command's module is imported when it is called."""

from __future__ import annotations

import os
import sys
from importlib import import_module

import click

from ragq.errors import RagqError

__all__ = ["cli", "main"]

# command -> (module of ragq.cli, attribute, what it does)
COMMANDS = {
    "index": ("index", "index", "Index a folder, a file or ready embeddings."),
    "search": ("search", "search", "Search an index with a question."),
    "add": ("add", "add", "Add documents to an index, or replace them."),
    "delete": ("delete", "delete", "Delete documents by id or by filter."),
    "compact": ("compact", "compact", "Rewrite shards without what was deleted."),
    "train": ("train", "train", "Train a codec on queries, and keep it if it helps."),
    "recode": ("recode", "recode", "Encode an index again with another codec."),
    "structure": ("structure", "structure", "Build lists or a graph, so that a search looks at a part of the rows."),
    "verify": ("verify", "verify", "Compare every file of an index with its checksum."),
    "repair": ("repair", "repair", "Rebuild what can be rebuilt of a damaged index."),
    "info": ("info", "info", "Show what an index is and what its parts weigh."),
    "serve": ("serve", "serve", "Serve an index over HTTP, with a search page."),
    "plan": ("plan", "plan", "Tell what an index of some size would take, from what is measured here."),
    "codecs": ("codecs", "codecs", "List the codecs with their bytes a vector."),
    "eval": ("eval", "eval_command", "Measure retrieval quality per storage budget."),
    "bench": ("bench", "bench", "Time the kernels side by side with other libraries."),
}


class LazyGroup(click.Group):
    """A group that lists its commands without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        command: click.Command = getattr(import_module(f"ragq.cli.{module}"), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0] if args else ""
        if name and not name.startswith("-") and name not in COMMANDS:
            import difflib

            near = difflib.get_close_matches(name, COMMANDS, 1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            ctx.fail(f"There is no command '{name}'.{hint}")
        return super().resolve_command(ctx, args)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="ragq", prog_name="ragq")
def cli() -> None:
    """A retrieval index for RAG that is as small as the answers allow.

    \b
    ragq index corpus/                      make corpus.ragq
    ragq search corpus.ragq "what is ...?"  ask it
    """


def main() -> None:
    """Run the command line: exit 0, 1 when the work failed, 2 when the command was wrong."""
    try:
        status = cli.main(prog_name="ragq", standalone_mode=False)
    except RagqError as error:
        click.echo(f"Error: {error}", err=True)
        status = 1
    except click.ClickException as error:
        error.show()
        status = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted.", err=True)
        status = 1
    except BrokenPipeError:  # whoever read the output has enough: nothing more is written, also not at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    sys.exit(status if isinstance(status, int) else 0)
