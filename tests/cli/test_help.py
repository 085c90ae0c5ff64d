"""Help and wrong usage: an example for every command, a truthful exit status, a way out in each message."""

from __future__ import annotations

import pytest
from helpers import called, flagperf

COMMANDS = [
    *(["doctor"], ["devices"], ["list"], ["show"], ["run"], ["results"], ["compare"], ["report"], ["import"]),
    *(["data", "prepare"], ["data", "verify"], ["data", "list"], ["vendor", "parse"]),
    *(["vendor", "new"], ["vendor", "check"], ["vendor", "explain"]),
    *(["submit", "system"], ["submit", "pack"], ["submit", "check"], ["submit", "keygen"]),
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help_with_an_example_and_json(command: list[str]) -> None:
    done = called(*command, "--help")
    assert done.returncode == 0, done.stderr
    assert "Example: flagperf" in done.stdout
    assert "--json" in done.stdout


def test_the_help_lists_the_commands() -> None:
    done = flagperf("--help")
    assert done.returncode == 0
    for command in COMMANDS:
        assert command[0] in done.stdout
    assert "--install-completion" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["run"], "No case"),
        (["run", "aquila/pretran"], "Did you mean 'aquila/pretrain'?"),
        (["run", "aquila/pretrain", "--engine", "dpp"], "Did you mean 'ddp'?"),
        (["run", "aquila/pretrain", "--set", "model.dmi=3"], "Did you mean 'model.dim'?"),
        (["run", "aquila/pretrain", "--set", "model.dim"], "key=value"),
        (["run", "aquila/pretrain", "--layout", "zeor=2"], "Did you mean 'zero'?"),
        (["run", "--resume", "/nowhere"], "/nowhere"),
        (["run", "--resume", ".", "--engine", "ddp", "--set", "a=b"], "engine, set can't be changed"),
        (["run", "aquila/pretrain", "--memory-limit", "0"], "memory-limit"),
        (["show", "aquila"], "aquila/pretrain"),
        (["list", "everything"], "everything"),
        (["compare"], "RUN"),
        (["results", "/nowhere"], "/nowhere"),
        (["results", ".", "--where", "engine"], "COLUMN OPERATOR VALUE"),
        (["--plugins", "/nowhere", "list"], "/nowhere"),
        (["no-such-command"], "no-such-command"),
        (["data", "prepare", "/nowhere"], "/nowhere"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_is_2_and_says_what_is_right(arguments: list[str], told: str) -> None:
    done = called(*arguments)
    assert told in done.stderr, done.stderr
    assert done.stdout == ""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr


def test_the_version() -> None:
    from flagperf import __version__

    assert flagperf("--version").stdout.strip() == __version__
