"""Click's usage errors in one line: what is wrong, and the nearest thing that would be right."""

from __future__ import annotations

import click
from click import exceptions

from compress.errors import nearest_names


def sentence(error: exceptions.ClickException, main: click.Context) -> str:
    """The line without its ``error:``.

    Args:
        error: what click raised.
        main: the outermost command's context, for errors that click doesn't tell one of.
    """
    return " ".join(_sentence(error, main).split())


def _sentence(error: exceptions.ClickException, main: click.Context) -> str:
    context = (error.ctx if isinstance(error, exceptions.UsageError) else None) or main
    if isinstance(error, exceptions.NoSuchOption):
        return f"no such option {error.option_name!r}" + _nearest(error.option_name, context)
    if isinstance(error, exceptions.MissingParameter):
        return f"missing {_name(error.param)}; {context.get_usage().replace('Usage:', 'usage:')}"
    if isinstance(error, exceptions.BadParameter):
        return f"{_name(error.param)} {_plain(error.message)}"
    if isinstance(error, exceptions.BadOptionUsage) and "requires" in error.message:
        return f"{error.option_name} needs a value{_example(error.option_name, context)}"
    return _plain(error.message)


def _nearest(name: str, context: click.Context) -> str:
    options = [
        option for parameter in context.command.get_params(context) for option in parameter.opts if option[0] == "-"
    ]
    near = nearest_names(name, [option for option in options if option.startswith("--")], most=1)
    return f"; nearest: {', '.join(near)}" if near else f"; see {context.command_path} --help"


def _example(name: str, context: click.Context) -> str:
    found = [p.metavar for p in context.command.get_params(context) if name in p.opts and isinstance(p.metavar, str)]
    return f": {name} {found[0]}" if found else ""


def _name(parameter: click.Parameter | None) -> str:
    if parameter is None:
        return "value"
    return parameter.opts[0] if isinstance(parameter, click.Option) else str(parameter.human_readable_name)


def _plain(message: str) -> str:
    """Click's sentence in the form of ours: small letter first, no full stop."""
    text = message.strip().removesuffix(".")
    return text[:1].lower() + text[1:]
