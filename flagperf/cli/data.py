"""`flagperf data`: corpora, made ready, checked and listed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from flagperf.cli import common

if TYPE_CHECKING:
    from flagperf.data import DataSettings

app = typer.Typer(help="Corpora: prepare, verify and list the text that training cases read.", no_args_is_help=True)

SOURCE = Annotated[
    str,
    typer.Argument(metavar="SOURCE", help="bilingual, synthetic, a text folder or file, or a Megatron .bin/.idx pair."),
]
CHINESE = Annotated[float, typer.Option(help="Share of tokens from Chinese text, for corpora that have both.")]
VOCABULARY = Annotated[int, typer.Option("--vocab-size", help="Entries of the tokenizer.")]
VALIDATION = Annotated[float, typer.Option(help="Share of tokens held out.")]
SEED = Annotated[int, typer.Option(help="Order of the documents; of synthetic data, its dice.")]
TOKENS = Annotated[int, typer.Option(help="Length of synthetic data.")]


@app.command()
def prepare(
    source: SOURCE = "bilingual",
    chinese: CHINESE = 0.4,
    vocab_size: VOCABULARY = 8192,
    validation: VALIDATION = 0.02,
    seed: SEED = 0,
    tokens: TOKENS = 4_194_304,
    json: common.JSON = False,
) -> None:
    """Fetch, extract, tokenize and store a corpus in the cache; done once, then instant.

    Example: flagperf data prepare bilingual
    """
    from flagperf.cli.watch import Terminal
    from flagperf.data import prepare as prepare_data

    settings = _settings(source, chinese, vocab_size, validation, seed, tokens)
    with Terminal() as terminal:
        prepared = prepare_data(settings, terminal.stage)
    if json:
        common.print_json({"path": str(prepared.path), "meta": prepared.meta})
        return
    common.out().print(
        f"{source}: {len(prepared.train):,} training and {len(prepared.validation):,} validation tokens, "
        f"in {prepared.path}",
        soft_wrap=True,
    )


@app.command()
def verify(
    source: SOURCE = "bilingual",
    chinese: CHINESE = 0.4,
    vocab_size: VOCABULARY = 8192,
    validation: VALIDATION = 0.02,
    seed: SEED = 0,
    tokens: TOKENS = 4_194_304,
    json: common.JSON = False,
) -> None:
    """Check every byte of a prepared corpus against the hashes stored with it.

    Example: flagperf data verify bilingual
    """
    from flagperf.data import verify as verify_data

    prepared = verify_data(_settings(source, chinese, vocab_size, validation, seed, tokens))
    if json:
        common.print_json({"path": str(prepared.path), "valid": True})
    else:
        common.out().print(f"{source}: every file is as it was written.")


@app.command("list")
def list_(json: common.JSON = False) -> None:
    """List the corpora that are prepared and those that can be.

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
    for column in ("corpus", "tokens", "Chinese", "vocabulary", "where"):
        table.add_column(column, overflow="fold", justify="left" if column in ("corpus", "where") else "right")
    for row in rows:
        count, chinese = row["tokens"], row["chinese"]
        table.add_row(
            *(row["name"], "" if count is None else f"{count:,}", "" if chinese is None else f"{chinese:.0%}"),
            *(str(row["vocab_size"] or ""), row["problem"] or row["path"] or f"not prepared: {row['description']}"),
        )
    common.out().print(table)


def _settings(source: str, chinese: float, vocab_size: int, validation: float, seed: int, tokens: int) -> DataSettings:
    from flagperf.data import DataSettings

    return DataSettings(
        source=source, chinese=chinese, vocab_size=vocab_size, validation=validation, seed=seed, tokens=tokens
    )
