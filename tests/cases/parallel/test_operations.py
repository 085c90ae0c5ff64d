"""What operations move, by hand, and that nothing wrong in a result goes unseen."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flagperf.cases.parallel import measuring
from flagperf.cases.parallel.measuring import Run
from flagperf.cases.parallel.operations import OPERATIONS, SUM, Message, message
from flagperf.cases.parallel.patterns import Pattern
from flagperf.measure.inputs import DTYPES

MIB = 2**20
CPU = torch.device("cpu")


@pytest.fixture(autouse=True, scope="module")
def _few_calls() -> Iterator[None]:
    """Have memory for a few calls a round rather than thousands."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "_ROWS", 4)
        yield


@pytest.mark.parametrize(
    ("operation", "ranks", "busbw"),
    [
        # 1 MiB in 1 ms is an algbw of 1.048576 GB/s; of that every link carries 2(n-1)/n, (n-1)/n or all.
        ("all_reduce", 2, 1.048576),
        ("all_reduce", 4, 1.572864),
        ("all_reduce", 8, 1.835008),
        ("all_gather", 2, 0.524288),
        ("all_gather", 4, 0.786432),
        ("reduce_scatter", 2, 0.524288),
        ("reduce_scatter", 8, 0.917504),
        ("all_to_all", 2, 0.524288),
        ("all_to_all", 4, 0.786432),
        ("broadcast", 2, 1.048576),
        ("broadcast", 8, 1.048576),
        ("send_recv", 2, 1.048576),
        ("bidirectional", 2, 1.048576),  # what goes one way, not twice that
        ("ring", 4, 1.048576),
    ],
)
def test_bus_bandwidth_by_hand(operation: str, ranks: int, busbw: float) -> None:
    about = message(operation, OPERATIONS[operation].places[0], ranks, MIB, 4)
    assert about.bytes == MIB
    assert about.bus_bytes / 1e-3 / 1e9 == pytest.approx(busbw)


def test_the_size_is_that_of_the_whole_where_ranks_share_it() -> None:
    gather, scatter = (message(name, "out", 4, MIB, 4) for name in ("all_gather", "reduce_scatter"))
    assert (4 * gather.sent(), 4 * gather.received()) == (MIB // 4, MIB)
    assert (4 * scatter.sent(), 4 * scatter.received()) == (MIB, MIB // 4)
    assert message("all_gather", "out", 3, 8, 4).bytes == 12  # one element a rank is the least
    assert message("all_reduce", "in", 3, 7, 4).bytes == 4


def test_pairs_are_across_and_one_of_an_odd_number_rests() -> None:
    one_way, both, ring = (message(name, "out", 5, 8, 4) for name in ("send_recv", "bidirectional", "ring"))
    assert [one_way.peers(rank) for rank in range(5)] == [(2, None), (3, None), (None, 0), (None, 1), (None, None)]
    assert [both.peers(rank) for rank in range(5)] == [(2, 2), (3, 3), (0, 0), (1, 1), (None, None)]
    assert [ring.peers(rank) for rank in range(5)] == [(1, 4), (2, 0), (3, 1), (4, 2), (0, 3)]


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16", "fp64", "int8", "int32", "int64"])
@pytest.mark.parametrize("ranks", [2, 7, 700])
def test_sums_are_exact_in_whatever_order(dtype: str, ranks: int) -> None:
    pattern = Pattern(ranks, DTYPES[dtype], seed=1)
    added = torch.zeros_like(pattern.rows[0])
    for rank in torch.randperm(ranks, generator=torch.Generator().manual_seed(2)).tolist():
        added += pattern.rows[rank]
    assert torch.equal(added, pattern.rows[SUM])
    assert len(pattern.rows[SUM].unique()) > 5
    assert not (pattern.rows == pattern.poison).any()


def perform(runs: list[Run], number: int) -> None:
    """Do an operation as it is defined, on the memory that ranks have in one process."""
    about = runs[0].about
    sent = [run.sent[number].clone() for run in runs]
    total = torch.stack(sent).sum(0).to(sent[0].dtype) if about.operation != "broadcast" else sent[0]
    for rank, run in enumerate(runs):
        own = slice(rank * about.part, (rank + 1) * about.part)
        source = about.peers(rank)[1]
        results = {
            "all_reduce": lambda: total,
            "reduce_scatter": lambda own=own: total[own],
            "all_gather": lambda: torch.cat(sent),
            "all_to_all": lambda own=own: torch.cat([each[own] for each in sent]),
            "broadcast": lambda: sent[0],
        }
        if about.operation in results:
            run.results[number].copy_(results[about.operation]())
        elif source is not None:
            run.results[number].copy_(sent[source])


def made(about: Message, dtype: str, seed: int = 3) -> list[Run]:
    pattern = Pattern(about.ranks, DTYPES[dtype], seed)
    return [Run(about, rank, lambda sent, result: None, pattern, CPU) for rank in range(about.ranks)]


cases = st.tuples(
    st.sampled_from([(name, place) for name, each in OPERATIONS.items() for place in each.places]),
    st.integers(2, 5),
    st.sampled_from(["fp32", "bf16", "int8"]),
    st.integers(256, 40_000),
)


@settings(max_examples=30)
@given(cases, st.integers(1, 3))
def test_what_is_right_is_found_right_call_by_call(case: tuple[tuple[str, str], int, str, int], calls: int) -> None:
    (operation, place), ranks, dtype, size = case
    about = message(operation, place, ranks, size, DTYPES[dtype].itemsize)  # type: ignore[arg-type]
    runs = made(about, dtype)
    for _ in range(2):
        for run in runs:
            run.prepare(calls)
        for number in range(calls):
            perform(runs, number)
        found = [run.judge(calls) for run in runs]
        assert [each.wrong for each in found] == [0] * ranks
        assert sum(each.elements for each in found) == calls * sum(
            segment.length for rank in range(ranks) for segment in about.expected(rank)
        )


def nothing(runs: list[Run], number: int) -> None:
    """The backend didn't write a thing."""


def shifted(runs: list[Run], number: int) -> None:
    perform(runs, number)
    for run in runs:
        run.results[number].copy_(run.results[number].roll(1))


def swapped(runs: list[Run], number: int) -> None:
    """Two halves in each other's place."""
    perform(runs, number)
    for run in runs:
        run.results[number].copy_(run.results[number].roll(len(run.results[number]) // 2))


def of_another_call(runs: list[Run], number: int) -> None:
    perform(runs, number)
    if number:
        for run in runs:
            run.results[number].copy_(run.results[0])


def one_element(runs: list[Run], number: int) -> None:
    perform(runs, number)
    for run in runs:
        run.results[number][-1] += 1


def short(runs: list[Run], number: int) -> None:
    """The last element wasn't written."""
    perform(runs, number)
    for run in runs:
        run.results[number][-1] = run.pattern.poison


@settings(max_examples=40)
@given(cases, st.sampled_from([nothing, shifted, swapped, of_another_call, one_element, short]))
def test_what_is_wrong_is_seen(
    case: tuple[tuple[str, str], int, str, int], fault: Callable[[list[Run], int], None]
) -> None:
    (operation, place), ranks, dtype, size = case
    about = message(operation, place, ranks, size, DTYPES[dtype].itemsize)  # type: ignore[arg-type]
    runs = made(about, dtype)
    for run in runs:
        run.prepare(2)
    for number in range(2):
        fault(runs, number)
    found = [run.judge(2) for run in runs]
    if fault is nothing and operation == "broadcast":
        found = found[1:]  # the first rank has it already
    assert all(each.wrong > 0 for rank, each in enumerate(found) if each.elements), found


@pytest.mark.parametrize("missing", [0, 1, 2])
@pytest.mark.parametrize("operation", ["all_reduce", "reduce_scatter"])
def test_a_sum_without_one_rank_or_with_one_twice_is_seen(operation: str, missing: int) -> None:
    for weight in (0, 2):
        about = message(operation, OPERATIONS[operation].places[0], 3, 4096, 4)
        runs = made(about, "fp32")
        for run in runs:
            run.prepare(1)
        runs[missing].sent[0].mul_(weight)
        perform(runs, 0)
        assert all(run.judge(1).wrong > 0 for run in runs)


def test_a_result_that_isnt_finite_is_wrong_without_a_largest_error() -> None:
    about = message("all_reduce", "in", 2, 64, 4)
    run = made(about, "fp32")[0]
    run.prepare(1)
    run.results[0].fill_(float("nan"))
    found = run.judge(1)
    assert (found.wrong, found.max_absolute, found.max_relative) == (16, None, None)


def test_results_in_place_share_the_memory_of_what_is_sent() -> None:
    def overlap(operation: str, place: str) -> bool:
        run = made(message(operation, place, 2, 1024, 4), "fp32")[1]  # type: ignore[arg-type]
        ends = [(each[0].data_ptr(), each[0].data_ptr() + each[0].nbytes) for each in (run.sent, run.results)]
        return ends[0][0] < ends[1][1] and ends[1][0] < ends[0][1]

    for operation in ("all_gather", "reduce_scatter"):
        assert overlap(operation, "in") and not overlap(operation, "out")
    assert overlap("all_reduce", "in") and overlap("broadcast", "in") and not overlap("all_to_all", "out")
