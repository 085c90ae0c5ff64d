"""`flagperf submit`: results sealed into one file, and checked by anyone."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flagperf.cli import common
from flagperf.submit import MEBIBYTES, SECONDS

if TYPE_CHECKING:
    from flagperf.schema.submission import Finding, SubmitCheckOutput

app = typer.Typer(
    help="Submissions: describe the system, pack results into one sealed file, check anyone's.", no_args_is_help=True
)


class Division(StrEnum):
    """What a submission may choose."""

    closed = "closed"
    open = "open"


@app.command("system")
def system_(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The form to write.")] = Path(
        "system.yaml"
    ),
    vendor: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Whose devices it is about.", show_default="the first that is no CPU"),
    ] = None,
    json: common.JSON = False,
) -> None:
    """Write the form that describes the system, filled in from this machine; what it can't tell is marked.

    Example: flagperf submit system -o system.yaml
    """
    from flagperf.cli.devices import find
    from flagperf.errors import Unavailable
    from flagperf.schema.submission import SubmitSystemOutput
    from flagperf.submit import system

    registries = common.registries()
    if vendor is not None:
        registries.vendors.get(vendor)
    found = {state.name: devices for state, devices in find(registries) if devices}
    others = [name for name in found if registries.vendors.get(name).device_type != "cpu"]
    name = vendor or next(iter([*others, *found]), "")
    if name not in found:
        raise Unavailable(f"No device of {name or 'any vendor'} was found here.", "`flagperf devices` says why.")
    text, left = system.form(found[name])
    system.write(output, text)
    if json:
        common.print_json(SubmitSystemOutput(system=str(output), open=left))
    else:
        common.out().print(f"{output}: fill in {', '.join(left)}", markup=False, soft_wrap=True)


@app.command()
def pack(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN…", help="Run folders, all of one vendor.")],
    vendor: Annotated[str, typer.Option(metavar="NAME", help="Whose adapter measured them.")],
    system: Annotated[
        Path, typer.Option(metavar="FILE", help="Description of the system; `flagperf submit system` begins one.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The bundle to write.")] = Path(
        "submission.tar"
    ),
    division: Annotated[
        Division, typer.Option(help="closed: as the case says, to be ranked; open: other sizes, lengths and types.")
    ] = Division.closed,
    rules: Annotated[
        str | None, typer.Option(metavar="VERSION", help="Rules it is held to.", show_default="newest")
    ] = None,
    sign: Annotated[
        Path | None, typer.Option(metavar="KEY", help="Private key to sign with; `flagperf submit keygen` makes one.")
    ] = None,
    json: common.JSON = False,
) -> None:
    """Pack runs into one sealed file: adapter, plans, journals, results, system. The same runs give the same bytes.

    Example: flagperf submit pack runs/20260101-120000 --vendor cpu --system system.yaml -o submission.tar
    """
    from flagperf.submit.pack import pack as pack_runs

    packed = pack_runs(
        runs,
        vendor,
        system,
        output,
        common.registries(),
        division=division.value,
        rules=rules,
        private_key=sign,
    )
    if json:
        common.print_json(packed)
        return
    out = common.out()
    for file in packed.files:
        out.print(f"{file.size:>12,}  {file.path}", markup=False, soft_wrap=True)
    out.print(f"{len(packed.left_out)} files of the runs stay out: reports, and what ranks printed.")
    out.print(f"{packed.bundle}: {packed.size:,} bytes, SHA-256 {packed.sha256}", markup=False, soft_wrap=True)
    out.print(f"Seal {packed.seal}" + (f", signed by {packed.signed_by}" if packed.signed_by else ", not signed"))
    out.print(f"Check it as others will: flagperf submit check {packed.bundle}", markup=False, soft_wrap=True)


@app.command()
def check(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="What `flagperf submit pack` wrote.")],
    key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Public key that it must be signed by: KEY.pub")
    ] = None,
    seconds: Annotated[int, typer.Option(min=1, max=86400, help="CPU time the check may take.")] = SECONDS,
    mebibytes: Annotated[int, typer.Option(min=256, max=2**20, help="Memory the check may take.")] = MEBIBYTES,
    json: common.JSON = False,
) -> None:
    """Check a bundle on any machine: integrity, rules, and every result computed again. All reasons are told at once.

    Exit status: 0 accepted, 1 rejected, 2 wrong usage. Example: flagperf submit check submission.tar
    """
    from flagperf.submit import confined, signing

    public = signing.read_key(key) if key else None
    verdict = confined.check(bundle, common.plugins(), public, seconds=seconds, mebibytes=mebibytes)
    if json:
        common.print_json(verdict)
    else:
        _show(verdict)
    if verdict.verdict == "rejected":
        raise typer.Exit(1)


@app.command()
def keygen(
    private: Annotated[Path, typer.Argument(metavar="KEY", help="File for the private key; the public is KEY.pub.")],
    json: common.JSON = False,
) -> None:
    """Make a pair of Ed25519 keys to sign submissions with.

    Example: flagperf submit keygen ~/flagperf.key
    """
    from flagperf.schema.submission import SubmitKeygenOutput
    from flagperf.submit import signing

    public, told = signing.keygen(private)
    if json:
        common.print_json(SubmitKeygenOutput(private=str(private), public=str(public), public_key=told))
    else:
        common.out().print(f"{private}: keep it secret\n{public}: give it away: {told}", markup=False, soft_wrap=True)


def _show(verdict: SubmitCheckOutput) -> None:
    out = common.out()
    for title, findings in (("Reasons", verdict.reasons), ("Notes", verdict.notes)):
        if findings:
            out.print(f"{title}:")
        for finding in findings:
            out.print(_text(finding), markup=False, soft_wrap=True)
    for result in verdict.results:
        speed = result.metrics.get("tokens_per_second")
        told = f"{speed:,.0f} tokens/s" if speed is not None else "no throughput"
        arm = f"{result.engine} {result.layout}"
        out.print(f"  {result.trial}  {result.case} {result.preset}  {arm}  {told}", markup=False, soft_wrap=True)
    about = ", ".join(
        filter(None, (verdict.vendor, verdict.system, verdict.division, verdict.rules and f"rules {verdict.rules}"))
    )
    signed = f"signed by {verdict.signed_by}" if verdict.signed_by else "not signed"
    count = len(verdict.reasons)
    why = f": {count} reason{'s' * (count != 1)}" if count else ""
    out.print(f"{verdict.bundle}: {about or 'unknown'}; {signed}", markup=False, soft_wrap=True)
    out.print(f"Verdict: {verdict.verdict}{why}", style="green" if verdict.verdict == "accepted" else "red")


def _text(finding: Finding) -> str:
    place = f"{finding.file}{f':{finding.line}' if finding.line else ''}: " if finding.file else ""
    text = f"  [{finding.code}] {place}{finding.message}"
    if finding.expected or finding.found:
        text += f"\n      expected {finding.expected or '-'}; found {finding.found or '-'}"
    return text + (f"\n      {finding.hint}" if finding.hint else "")
