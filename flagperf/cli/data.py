"""`flagperf data`: corpora, made ready, checked and listed."""

from __future__ import annotations

from typing import Annotated

import typer

from flagperf.cli import common

app = typer.Typer(help="Corpora: prepare, verify and list the text that training cases read.", no_args_is_help=True)

SOURCE = Annotated[
    str,
    typer.Argument(metavar="SOURCE", help="bilingual, synthetic, a text folder or file, or a Megatron .bin/.idx pair."),
]
CHINESE = Annotated[float, typer.Option(help="Share of tokens from Chinese text, for corpora that have both.")]
VOCABULARY = Annotated[int, typer.Option("--vocab-size", help="Entries of the tokenizer.")]


@app.command()
def prepare(
    source: SOURCE = "bilingual", chinese: CHINESE = 0.4, vocab_size: VOCABULARY = 8192, json: common.JSON = False
) -> None:
    """Fetch, extract, tokenize and store a corpus in the cache; done once, then instant.

    Example: flagperf data prepare bilingual
    """
    import msgspec

    from flagperf.cli.watch import Terminal
    from flagperf.data import DataSettings
    from flagperf.data import prepare as prepare_data

    with Terminal() as terminal:
        prepared = prepare_data(DataSettings(source=source, chinese=chinese, vocab_size=vocab_size), terminal.stage)
    if json:
        common.print_json({"path": str(prepared.path), "meta": msgspec.to_builtins(prepared.meta)})
        return
    common.out().print(
        f"{source}: {len(prepared.train):,} training and {len(prepared.validation):,} validation tokens, "
        f"in {prepared.path}",
        soft_wrap=True,
    )


@app.command()
def verify(
    source: SOURCE = "bilingual", chinese: CHINESE = 0.4, vocab_size: VOCABULARY = 8192, json: common.JSON = False
) -> None:
    """Check every byte of a prepared corpus against the hashes stored with it.

    Example: flagperf data verify bilingual
    """
    from flagperf.data import DataSettings
    from flagperf.data import verify as verify_data

    verify_data(DataSettings(source=source, chinese=chinese, vocab_size=vocab_size))
    if json:
        common.print_json({"source": source, "valid": True})
    else:
        common.out().print(f"{source}: every file is as it was written.")


@app.command("list")
def list_(json: common.JSON = False) -> None:
    """List the corpora that can be prepared and those that are.

    Example: flagperf data list
    """
    import msgspec
    from rich.table import Table

    from flagperf.data import listing

    rows = [msgspec.to_builtins(item) for item in listing()]
    if json:
        common.print_json({"corpora": rows})
        return
    table = Table(box=None, pad_edge=False)
    for column in rows[0] if rows else []:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*("" if value is None else str(value) for value in row.values()))
    common.out().print(table)
