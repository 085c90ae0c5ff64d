"""What a manifest says, and whether it can be so."""

from __future__ import annotations

import re

from flagperf.conformance.check import Problems, check
from flagperf.conformance.kit import Kit

_DTYPES = {"fp64", "fp32", "tf32", "bf16", "fp16", "fp8", "int8"}
_OPERATIONS = {
    *("all_reduce", "all_gather", "all_gather_into_tensor", "reduce_scatter", "reduce_scatter_tensor", "broadcast"),
    *("reduce", "gather", "scatter", "all_to_all", "all_to_all_single", "send", "recv", "barrier"),
}
_HARNESS = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "PATH", "HOME"}


@check(
    "Everything begins with the manifest: an adapter whose manifest can't be read isn't there.",
    "Mend what the message names; flagperf/schema/manifest.py has every field (VendorManifest).",
    part="identity",
)
def test_can_be_read(kit: Kit) -> Problems:
    if kit.unreadable:
        yield kit.unreadable


@check(
    "Reports are in English and Chinese, and show the vendor by its title.",
    "Give `title` and `title_zh`; the same text in both where the name has no translation.",
    part="identity",
)
def test_has_titles_in_two_languages(kit: Kit) -> Problems:
    for key in ("title", "title_zh"):
        if not getattr(kit.manifest, key).strip():
            yield f"`{key}` is empty"


@check(
    "`flagperf list vendors` shows one line a vendor.",
    "Write one sentence of at most 120 characters that ends with a full stop.",
    part="identity",
)
def test_summary_is_one_sentence(kit: Kit) -> Problems:
    summary = kit.manifest.summary
    if not summary.strip() or "\n" in summary:
        yield "`summary` isn't one line"
    elif len(summary) > 120 or not summary.endswith("."):
        yield f"{summary!r} has {len(summary)} characters" + ("" if summary.endswith(".") else " and no full stop")


@check(
    "torch finds the device by this word.",
    'Give the word before the colon in `torch.device("npu:0")`.',
    part="torch",
)
def test_device_type_is_a_word(kit: Kit) -> Problems:
    if not re.fullmatch(r"[a-z][a-z0-9]{1,15}", kit.manifest.device_type):
        yield f"{kit.manifest.device_type!r} can't be a device type"


@check(
    "Ranks meet by this backend; with a host's backend every gradient would go through the host.",
    "Name the maker's backend of torch.distributed: `nccl`, `hccl` …",
    part="torch",
)
def test_backend_is_for_the_devices(kit: Kit) -> Problems:
    if not re.fullmatch(r"[a-z][a-z0-9_:,]*", kit.manifest.backend):
        yield f"{kit.manifest.backend!r} can't be a backend"
    elif kit.manifest.device_type != "cpu" and kit.manifest.backend in ("gloo", "mpi"):
        yield f"{kit.manifest.backend} works on tensors of the host"


@check(
    "Who shares a machine says with this variable which devices a process may use, and ranks must heed it.",
    "Name the environment variable, as `CUDA_VISIBLE_DEVICES` is spelled; leave it out if there is none.",
    part="torch",
)
def test_visible_devices_is_a_variable(kit: Kit) -> Problems:
    name = kit.manifest.visible_devices
    if name and not re.fullmatch(r"[A-Z][A-Z0-9_]*", name):
        yield f"{name!r} is no variable's name"


@check(
    "A variable without a reason can't be judged: it may be a tuning trick or the cure of a bug that is long gone.",
    "Give `value`, `why` and `why_zh` for each: a clause that says what happens without it.",
    part="environment",
)
def test_variables_have_reasons(kit: Kit) -> Problems:
    every = {**kit.manifest.environment}
    for case, override in kit.manifest.cases.items():
        every |= {f"{case}: {name}": variable for name, variable in override.environment.items()}
    for name, variable in every.items():
        for key in ("why", "why_zh"):
            if len(getattr(variable, key).strip()) < 4:
                yield f"{name} has no `{key}`"


@check(
    "The harness tells ranks by these who they are; an adapter that sets them breaks the run.",
    "Leave out what torch's launcher, the harness or the user sets.",
    part="environment",
)
def test_variables_are_the_vendors_own(kit: Kit) -> Problems:
    manifest = kit.manifest
    names = [*manifest.environment, *(name for case in manifest.cases.values() for name in case.environment)]
    for name in names:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            yield f"{name!r} is no variable's name"
        elif name in _HARNESS or name.startswith("FLAGPERF_") or name == manifest.visible_devices:
            yield f"{name} isn't the adapter's to set"


@check(
    "What a device can't compute in is refused before a run starts, by these names and with this reason.",
    f"Use the harness's names ({', '.join(sorted(_DTYPES))}) and give each a reason.",
    part="limits",
)
def test_limits_have_reasons(kit: Kit) -> Problems:
    for name, why in kit.manifest.limits.items():
        if name not in _DTYPES:
            yield f"{name!r} is no data type of the harness"
        if len(why.strip()) < 4:
            yield f"{name} has no reason"


@check(
    "An engine that needs what the backend lacks is refused before a run starts.",
    f"Use torch.distributed's names ({', '.join(sorted(_OPERATIONS))}) and give each a reason.",
    part="limits",
)
def test_lacking_operations_have_reasons(kit: Kit) -> Problems:
    for name, why in kit.manifest.lacking.items():
        if name not in _OPERATIONS:
            yield f"{name!r} is no operation of torch.distributed"
        if len(why.strip()) < 4:
            yield f"{name} has no reason"


@check(
    "A container with all rights can do to the machine whatever it likes.",
    "Give the devices and folders that are needed, one by one.",
    part="container",
)
def test_container_has_no_more_rights_than_it_needs(kit: Kit) -> Problems:
    for option in kit.manifest.container.options:
        if not option.startswith("-"):
            yield f"{option!r} is no option of `docker run`; write --key=value"
        elif option.startswith(("--privileged", "--cap-add=ALL", "--security-opt=seccomp", "--pid=host")):
            yield f"{option} takes more than the devices"


@check(
    "An accelerator in a container isn't seen unless it's passed in, and how differs from maker to maker.",
    "Give `options` in [container].",
    part="container",
)
def test_container_is_told(kit: Kit) -> Problems:
    manifest = kit.accelerator.manifest
    simulated = bool(manifest.markers.environment) and not (manifest.markers.pci or manifest.markers.nodes)
    if not manifest.container.options and not simulated:
        yield "[container] has no options"


@check(
    "Kernels are found by distribution and module; a missing one must be told, not stumbled over.",
    "Give a distribution, a module, and what it computes (`attention`, `rms_norm` …).",
    part="kernels",
)
def test_kernels_name_what_they_compute(kit: Kit) -> Problems:
    for provider in kit.manifest.kernels:
        if not all(part.isidentifier() for part in provider.module.split(".")):
            yield f"{provider.module!r} is no module's name"
        if not provider.operations:
            yield f"{provider.distribution} computes nothing"


@check(
    "A vendor may choose for a case what the case leaves open, and nothing else.",
    "Name a case of `flagperf list cases`, a micro-batch of at least 1, and a reason.",
    part="cases",
)
def test_choices_for_cases_are_within_their_rules(kit: Kit) -> Problems:
    for name, override in kit.manifest.cases.items():
        if name not in kit.registries.cases.names():
            yield f"there is no case {name!r}"
            continue
        dtypes = [name for name in kit.registries.cases.get(name).dtypes if name not in kit.manifest.limits]
        if override.dtype is not None and override.dtype not in dtypes:
            yield f"{name}: {override.dtype} isn't one of {', '.join(dtypes)}"
        if override.micro is not None and override.micro < 1:
            yield f"{name}: micro is {override.micro}"
        if len(override.why.strip()) < 4:
            yield f"{name} has no reason"


@check(
    "A tool that hangs is given up after this time, and telemetry waits for it until then.",
    "Set `timeout` to what the tool takes on a busy machine, at most 30 s.",
    part="tools",
)
def test_tools_end_in_time(kit: Kit) -> Problems:
    for tool in kit.manifest.tools:
        if not 0 < tool.timeout <= 30:
            yield f"{tool.command[:1]}: timeout is {tool.timeout:g} s"


@check(
    "Tools are run without a shell: what needs one doesn't run, and what must be root fails for everyone else.",
    "Give the program and each of its arguments as a string of its own.",
    part="tools",
)
def test_tools_need_no_shell(kit: Kit) -> Problems:
    for tool in kit.manifest.tools:
        if not tool.command or not tool.command[0]:
            yield "a tool has no command"
        elif tool.command[0] in ("sh", "bash", "sudo", "env") or re.search(r"[\s|&;<>$`]", tool.command[0]):
            yield f"{tool.command[0]!r} isn't a program's name"
        elif any(argument in ("|", "&&", ";", ">", "2>&1") for argument in tool.command):
            yield f"{' '.join(tool.command)!r} is written for a shell"


@check(
    "The first tool must be able to say all by itself; one that adds has nothing to add to.",
    "Give first a tool without `adds`.",
    part="tools",
)
def test_first_tool_stands_alone(kit: Kit) -> Problems:
    if kit.manifest.tools and kit.manifest.tools[0].adds:
        yield f"`{' '.join(kit.manifest.tools[0].command)}` only adds"
