"""`flagperf devices`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flagperf.cli import common

if TYPE_CHECKING:
    from flagperf.registry import Registries
    from flagperf.schema.machine import Availability, Device


def devices(json: common.JSON = False, vendor_path: common.VENDOR_PATH = None) -> None:
    """List the devices of every vendor on this machine, and what can't be used, why, and what to do.

    Example: flagperf devices --json
    """
    from rich.markup import escape
    from rich.table import Table

    found = find(common.registries())
    if json:
        common.print_json(
            {
                "devices": [device for _, devices in found for device in devices],
                "vendors": [state for state, _ in found],
            }
        )
        return
    table = Table(box=None, pad_edge=False)
    for column in ("vendor", "index", "name", "memory MiB", "used MiB", "driver", "state"):
        table.add_column(column, justify="right" if column in ("index", "memory MiB", "used MiB") else "left")
    for _, devices in found:
        for device in devices:
            table.add_row(
                device.vendor, str(device.index), escape(device.name), mebibytes(device.memory_total_mib),
                mebibytes(device.memory_used_mib), escape(device.driver or "–"), escape(device.state),
            )  # fmt: skip
    out = common.out()
    out.print(table)
    absent = [state.name for state, _ in found if state.absent]
    for state, _ in found:
        if not state.available and not state.absent:
            remedy = f" {escape(state.remedy)}" if state.remedy else ""
            out.print(f"[dim]{escape(state.name)}: {escape(state.reason)}.{remedy}[/]", soft_wrap=True)
    if absent:
        out.print(f"[dim]Nothing here of {escape(', '.join(absent))}.[/]", soft_wrap=True)


def find(registries: Registries) -> list[tuple[Availability, list[Device]]]:
    """Ask every vendor's adapter for its devices; one that fails is unavailable, and the others are still asked."""
    from flagperf.errors import FlagPerfError
    from flagperf.schema.machine import Availability

    found: list[tuple[Availability, list[Device]]] = []
    for manifest in registries.vendors.all():
        try:
            adapter = registries.vendors.adapter(manifest.name)
            found.append((adapter.availability(), adapter.devices()))
        except FlagPerfError as error:
            state = Availability(name=manifest.name, available=False, reason=error.message, remedy=error.hint)
            found.append((state, []))
        except Exception as error:  # an adapter may raise anything; it must not hide the other vendors
            reason = f"its adapter failed: {type(error).__name__}: {error}"
            found.append((Availability(name=manifest.name, available=False, reason=reason), []))
    for path, why in registries.vendors.broken.items():
        found.append((Availability(name=path, available=False, reason=f"its manifest can't be read: {why}"), []))
    return found


def mebibytes(value: float | None) -> str:
    """Return a size for a table, or a dash where it isn't known."""
    return "–" if value is None else f"{value:,.0f}"
