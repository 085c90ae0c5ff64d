"""The commands, put together."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from flagperf.cli import (
    catalogue,
    common,
    compare,
    data,
    devices,
    doctor,
    import_,
    report,
    results,
    run,
    submit,
    vendor,
)

app = typer.Typer(
    name="flagperf",
    rich_markup_mode=None,
    help="How fast, how big and how accurate AI hardware and training stacks really are.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from flagperf import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
def options(
    plugins: Annotated[
        list[Path] | None,
        typer.Option(
            help="Folder with cases/, engines/, vendors/ or launchers/ of your own; may be repeated. "
            "Also the environment variable FLAGPERF_PLUGINS.",
            file_okay=False,
        ),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Handle the options that go before the command."""
    common.use_plugins(plugins or [])


app.command()(doctor.doctor)
app.command()(devices.devices)
app.command("list")(catalogue.list_)
app.command()(catalogue.show)
app.command()(run.run)
app.command()(results.results)
app.command()(compare.compare)
app.command()(report.report)
app.command("import")(import_.import_)
app.add_typer(data.app, name="data")
app.add_typer(vendor.app, name="vendor")
app.add_typer(submit.app, name="submit")


def run_app() -> int:
    """Run a command and return its exit status: 0 well, 1 invalid or failed, 2 wrong usage, 130 interrupted."""
    from flagperf.errors import FlagPerfError

    try:
        app()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except FlagPerfError as error:
        common.err().print(f"[bold red]Error:[/] {_plain(error.message)}", soft_wrap=True)
        if error.hint:
            common.err().print(_plain(error.hint), soft_wrap=True)
        return error.exit_status
    except KeyboardInterrupt:
        common.err().print("Interrupted.")
        return 130
    except BrokenPipeError:  # the reader of our output went away, which is its right
        sys.stderr.close()
        return 1
    return 0


def _plain(text: str) -> str:
    """Return text with nothing in it that rich would take for markup."""
    from rich.markup import escape

    return escape(text)
