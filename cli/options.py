"""Options and helpers that several commands share."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ragq.errors import InvalidArgumentError

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "PLACE",
    "echo_json",
    "index_argument",
    "json_option",
    "model_options",
    "parse_where",
    "table_console",
    "where_option",
]

WIDTH = 160  # of tables that do not go to a terminal
F = TypeVar("F", bound=Callable[..., Any])


class Place(click.ParamType):
    """The place of an index: a folder, or a URL of an object store, which no `Path` can hold."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str | Path:
        return value if isinstance(value, Path) or value.startswith(("s3://", "gs://")) else Path(value)


PLACE = Place()
index_argument = click.argument("index", type=PLACE)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for machines; no progress bar.")
where_option = click.option(
    "--where", metavar="JSON", help='Only documents that match, e.g. \'{"lang": "en", "year": {"$gte": 2020}}\'.'
)


def model_options(command: F) -> F:
    """Add the options that say what embeds and how."""
    options = [
        click.option("--model", help="Name or folder of a sentence-transformers model.  [default: all-MiniLM-L6-v2]"),
        click.option("--device", help="cpu, cuda, mps ...; the best one by default."),
        click.option("--backend", type=click.Choice(["torch", "onnx", "openvino"]), help="What runs the model."),
        click.option("--batch-size", type=click.IntRange(1), help="Passages of one forward pass.  [default: 32]"),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def given(**options: Any) -> dict[str, Any]:
    """Return the options that were given."""
    return {name: value for name, value in options.items() if value is not None}


def table_console() -> Console:
    """Return what prints tables: as wide as the terminal, or wide enough where there is none."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal or "COLUMNS" in os.environ else Console(width=WIDTH)


def parse_where(text: str | None) -> Any:
    """Read the JSON of ``--where``."""
    if text is None:
        return None
    try:
        return json.loads(text)
    except ValueError as error:
        raise InvalidArgumentError(
            f'--where must be JSON such as \'{{"lang": "en"}}\'. Got {text!r}: {error}.'
        ) from None


def echo_json(value: Any) -> None:
    """Print a JSON value."""
    click.echo(json.dumps(value, ensure_ascii=False, indent=2))
