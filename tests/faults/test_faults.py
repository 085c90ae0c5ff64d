"""Every fault a run must survive, injected for real: it ends soon, says why, and loses nothing."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from helpers import TINY, called, flagperf, leftovers, started

from flagperf.journal import Reader

pytestmark = pytest.mark.slow

RUN = ("run", "aquila/pretrain", *TINY)


def wait_for(condition: Callable[[], object], seconds: float = 90) -> None:
    """Wait until something has happened; the limit is there to end a test that would hang."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.05)


def steps(run: Path, trial: str, rank: int = 0) -> int:
    """Count the steps a rank has journalled."""
    path = run / "trials" / trial / f"rank{rank}.journal"
    return sum(event.key == "step" for event in Reader(path)) if path.exists() else 0


def rank_process(run: Path, trial: str, rank: int) -> psutil.Process:
    """Return the process of a rank."""
    header = next(iter(Reader(run / "trials" / trial / f"rank{rank}.journal")))
    return psutil.Process(header.value["pid"])


def long_run(run: Path, *more: str, engine: str = "ddp", ranks: int = 2) -> subprocess.Popen[str]:
    """Start a run that takes long enough to be hurt."""
    many = ("--ranks", str(ranks), "--trials", "2", "--steps", "400")
    return started(*RUN, "--engine", engine, *many, "--out", str(run), *more)


def test_a_rank_killed_makes_the_trial_invalid_and_names_the_cause(tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = long_run(run, "--json")
    wait_for(lambda: steps(run, "000-ddp") > 3)
    rank_process(run, "000-ddp", 1).kill()
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1, err
    result = json.loads(out)["results"][0]
    assert result["verdict"] == "invalid"
    told = " ".join(reason["message"] for reason in result["reasons"])
    assert "Rank 1 was killed by signal 9" in told.split(". ")[0]  # the cause before what follows from it
    assert "Rank 1 was killed by signal 9" in err and "Rank 0" not in err
    assert steps(run, "000-ddp") > 3  # what was measured before is readable
    assert not leftovers(run)


def test_a_killed_harness_leaves_no_process_and_the_run_can_be_resumed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = started(*RUN, "--engine", "single", "--trials", "2", "--steps", "30", "--out", str(run))
    wait_for(lambda: steps(run, "001-single") > 1)
    process.kill()
    process.communicate()
    wait_for(lambda: not leftovers(run), 30)
    kept = (run / "trials" / "000-single" / "rank0.journal").stat()
    done = flagperf("run", "--resume", str(run), "--json")
    assert done.returncode == 0, done.stderr
    assert [result["verdict"] for result in json.loads(done.stdout)["results"]] == ["valid", "valid"]
    again = (run / "trials" / "000-single" / "rank0.journal").stat()
    assert (kept.st_ino, kept.st_mtime_ns) == (again.st_ino, again.st_mtime_ns)  # the valid trial wasn't repeated
    assert (run / "trials" / "001-single.attempt1").is_dir()  # what was cut off is put aside, not lost


@pytest.mark.parametrize(
    ("number", "engine", "ranks"),
    [(signal.SIGINT, "ddp", 2), (signal.SIGTERM, "single", 1)],
    ids=["ctrl-c", "sigterm"],
)
def test_an_interrupt_cleans_up_and_keeps_what_was_measured(
    tmp_path: Path, number: signal.Signals, engine: str, ranks: int
) -> None:
    run, trial = tmp_path / "run", f"000-{engine}"
    process = long_run(run, engine=engine, ranks=ranks)
    wait_for(lambda: steps(run, trial) > 3)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"--resume {run}" in err
    assert not leftovers(run)
    assert steps(run, trial) > 3
    shown = called("results", run, "--json")
    assert shown.returncode == 1  # an interrupted trial isn't a success
    assert "interrupted" in shown.stdout


def test_a_hung_rank_is_ended_by_the_timeout(tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = long_run(run, "--timeout", "60", "--json")
    wait_for(lambda: steps(run, "000-ddp") > 1)
    rank_process(run, "000-ddp", 1).suspend()
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1, err
    told = " ".join(reason["message"] for reason in json.loads(out)["results"][0]["reasons"])
    assert "60 s" in told
    assert not leftovers(run)


def test_a_rendezvous_port_in_use_is_told_before_ranks_wait(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = flagperf(
            *RUN, "--engine", "ddp", "--ranks", "2", "--nodes", "2", "--rdzv", f"127.0.0.1:{port}",
            *("--out", str(tmp_path / "run")),
        )  # fmt: skip
    assert done.returncode == 1
    assert f"Port {port}" in done.stderr and "in use" in done.stderr and "--rdzv" in done.stderr


def test_a_rank_out_of_memory_is_told_as_that(tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = flagperf(
        *RUN, "--engine", "single", "--trials", "1", "--memory-limit", "2500", "--set", "model.dim=4096",
        *("--set", "model.layers=16", "--out", str(run), "--json"),
    )  # fmt: skip
    assert done.returncode == 1
    result = json.loads(done.stdout)["results"][0]
    assert result["verdict"] == "invalid"
    assert any(reason["code"] == "out_of_memory" and "micro" in reason["hint"] for reason in result["reasons"]), result
    assert not leftovers(run)


def test_a_small_address_space_fails_with_the_reason(tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (600 * 2**20, 600 * 2**20))

    run = tmp_path / "run"
    done = flagperf(*RUN, "--engine", "single", "--trials", "1", "--out", str(run), preexec_fn=limit)
    assert done.returncode == 1
    assert "memory" in done.stderr.lower() or "thread" in done.stderr.lower()
    assert "Traceback" not in done.stderr
    assert not leftovers(run)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(place)], check=False).returncode:
        pytest.skip("mounting a tmpfs needs root")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_disk_that_is_full_from_the_start(small_disk: Path) -> None:
    (small_disk / "filler").write_bytes(b"x" * (2 * 2**20))
    done = flagperf(*RUN, "--engine", "single", "--trials", "1", "--out", str(small_disk / "run"))
    assert done.returncode == 1
    assert "full" in done.stderr and "--out" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_disk_that_fills_up_during_a_trial_keeps_the_steps_before(small_disk: Path) -> None:
    run = small_disk / "run"
    process = started(*RUN, "--engine", "single", "--trials", "1", "--steps", "3000", "--out", str(run))
    wait_for(lambda: steps(run, "000-single") > 3)
    with pytest.raises(OSError, match="No space left"), (small_disk / "filler").open("wb", buffering=0) as filler:
        while filler.write(b"x" * 4096):
            pass
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1, err
    assert "full" in err
    assert "Traceback" not in err
    assert steps(run, "000-single") > 3
    wait_for(lambda: not leftovers(run), 15)


def test_a_folder_that_cant_be_written(tmp_path: Path) -> None:
    place = tmp_path / "read-only"
    place.mkdir()
    if os.geteuid() == 0:  # root may write anywhere but on a file system that is read-only
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", str(place)], check=False).returncode:
            pytest.skip("root can write everywhere and may not mount")
    else:
        place.chmod(0o500)
    try:
        done = flagperf(*RUN, "--out", str(place / "run"))
        assert done.returncode == 1
        assert str(place) in done.stderr and "--out" in done.stderr
    finally:
        if os.geteuid() == 0:
            subprocess.run(["umount", str(place)], check=True)


def test_a_corpus_with_a_flipped_byte_is_refused(tmp_path: Path) -> None:
    environment = {**os.environ, "FLAGPERF_CACHE": str(tmp_path / "cache")}
    made = flagperf(
        *("data", "prepare", "synthetic", "--tokens", "65536", "--vocab-size", "512", "--json"), env=environment
    )
    assert made.returncode == 0, made.stderr
    folder = Path(json.loads(made.stdout)["path"])
    tokens = max((file for file in folder.iterdir() if file.is_file()), key=lambda file: file.stat().st_size)
    content = bytearray(tokens.read_bytes())
    content[len(content) // 2] ^= 0x40
    tokens.write_bytes(content)
    verify = ("data", "verify", "synthetic", "--tokens", "65536", "--vocab-size", "512")
    for command in (verify, (*RUN, "--out", str(tmp_path / "run"))):
        done = flagperf(*command, env=environment)
        assert done.returncode == 1, done.stdout
        assert tokens.name in done.stderr and "Traceback" not in done.stderr


def test_without_a_network_the_way_out_is_told(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "FLAGPERF_CACHE": str(tmp_path / "cache"),
        "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
        "PIP_RETRIES": "0",
        "PIP_TIMEOUT": "2",
    }
    done = flagperf("run", "aquila/pretrain", "--out", str(tmp_path / "run"), env=environment)
    assert done.returncode == 1
    assert "data.source=synthetic" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def plugins(tmp_path: Path) -> Path:
    """A folder with an engine whose package is missing and a case whose import fails."""
    engines, cases = tmp_path / "mine" / "engines", tmp_path / "mine" / "cases" / "broken"
    engines.mkdir(parents=True)
    cases.mkdir(parents=True)
    (engines / "absent.toml").write_text(
        'name = "absent"\nkind = "training"\ntitle = "Absent"\nsummary = "-"\nentry = ".absent:Absent"\n'
        '[[requires]]\ndistribution = "no-such-distribution"\ninstall = "pip install no-such-distribution"\n'
    )
    (cases / "__init__.py").touch()
    (cases / "broken.py").write_text('raise RuntimeError("half-written")\n')
    (cases / "broken.toml").write_text(
        'name = "broken/case"\nkind = "training"\ntitle = "Broken"\nsummary = "-"\nentry = ".broken:Broken"\n'
        'metrics = ["step_time"]\ndtypes = ["fp32"]\n'
        "[protocol]\nwarmup = 2\nsteps = 1\ntrials = 1\nseed = 1\nvalidation = 1\nglobal_batch = 1\n"
        '[presets.tiny]\nsummary = "-"\n'
    )
    return tmp_path / "mine"


def test_an_engine_that_isnt_installed(plugins: Path, tmp_path: Path) -> None:
    done = called("--plugins", str(plugins), *RUN, "--engine", "absent", "--out", str(tmp_path / "run"))
    assert done.returncode == 1
    assert "no-such-distribution isn't installed" in done.stderr
    assert "pip install no-such-distribution" in done.stderr
    assert not (tmp_path / "run").exists()
    listed = called("--plugins", str(plugins), "list", "engines")
    assert listed.returncode == 0 and "absent" in listed.stdout and "ddp" in listed.stdout


def test_a_case_whose_import_fails_breaks_no_other(plugins: Path, tmp_path: Path) -> None:
    done = called("--plugins", str(plugins), "run", "broken/case", "--out", str(tmp_path / "run"))
    assert done.returncode == 1
    assert "half-written" in done.stderr and "broken.toml" in done.stderr
    assert "Traceback" not in done.stderr
    listed = called("--plugins", str(plugins), "list", "cases")
    assert listed.returncode == 0 and "aquila/pretrain" in listed.stdout and "broken/case" in listed.stdout


def test_more_ranks_than_cores_are_refused(tmp_path: Path) -> None:
    many = len(os.sched_getaffinity(0)) + 1
    done = called(*RUN, "--engine", "ddp", "--ranks", many, "--out", str(tmp_path / "run"))
    assert done.returncode == 2
    assert "--oversubscribe" in done.stderr and f"{many} ranks" in done.stderr


def test_a_second_run_into_the_same_folder_is_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = started(*RUN, "--engine", "single", "--trials", "1", "--out", str(run))
    wait_for(lambda: (run / "trials").exists())
    second = called(*RUN, "--engine", "single", "--trials", "1", "--out", str(run))
    assert second.returncode == 2 and str(run) in second.stderr
    resumed = called("run", "--resume", str(run))
    assert resumed.returncode == 1 and "Another run" in resumed.stderr
    process.terminate()
    process.communicate(timeout=120)


def test_a_torn_journal_is_read_up_to_the_tear(finished_run: tuple[Path, object], tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run[0], run)
    journal = run / "trials" / "000-ddp" / "rank0.journal"
    journal.write_bytes(journal.read_bytes()[:-7])
    shown = called("results", run, "--json")
    assert shown.returncode == 1  # the end is missing: it can't be taken for a success
    assert "torn" in shown.stdout
