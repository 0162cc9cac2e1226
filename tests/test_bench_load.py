"""The bench says how busy its machine was, and refuses or marks a record of a busy one (made-up counters)."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bench.load import Busy, Counters, Watch, load_between, mark, read_counters

START = Counters(clock=100.0, own=10.0, all=1000.0, load_average=0.2, cores=4)


def _watch(*others: float, insist: bool = False) -> Watch:
    """Counters before, after the probe of 1 s and 9 s later; `others` are cores that others use in each."""
    own, moments = 2.0, [START]
    for seconds, cores in zip((1.0, 9.0), others, strict=True):
        last = moments[-1]
        used = seconds * (own + cores)
        moments.append(replace(
            last, clock=last.clock + seconds, own=last.own + own * seconds, all=last.all + used,
            load_average=3.0,
        ))  # fmt: skip
    return Watch.begin(insist, read=iter(moments).__next__, pause=lambda seconds: None)


def test_a_quiet_machine():
    load = _watch(0.1, 0.1).end()
    assert load["others"] == pytest.approx(0.1) and load["busy"] is False
    assert (load["seconds"], load["processor_seconds"], load["cores"]) == (9.0, 18.0, 4)
    assert load["load_average"] == [3.0, 3.0]  # mostly the bench's own: stated, not judged
    assert mark({"load": load}) == ""


def test_a_machine_that_is_busy_at_the_start_is_refused_before_anything_is_measured():
    with pytest.raises(Busy, match=r"the machine is busy: other processes used 1.50 of 4 cores.*--busy"):
        _watch(1.5, 0.0)


def test_a_machine_that_became_busy_is_refused_at_the_end():
    with pytest.raises(Busy, match="was busy while this was measured: other processes used 0.50 of 4 cores"):
        _watch(0.0, 0.5).end()


def test_who_insists_gets_a_record_with_a_mark():
    load = _watch(1.0, 0.75, insist=True).end()
    assert load["busy"] is True and load["others"] == pytest.approx(0.75)
    assert mark({"load": load}) == "**On a busy machine: other processes used 0.75 of 4 cores.**"
    assert mark({"date": "before records had a load"}) == ""


def test_where_the_system_does_not_tell_the_load_average_decides():
    start = replace(START, all=None)
    load = load_between(start, replace(start, clock=101.0))
    assert load["others"] is None and load["busy"] is False
    busy = load_between(replace(start, load_average=2.5), replace(start, clock=101.0))
    assert mark({"load": busy}) == "**On a busy machine: its load average was 2.5.**"


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="this system does not tell")
def test_processes_below_this_one_count_as_its_own_while_they_live_and_afterwards():
    """A process and a child of its own, each busy for a while; the child ends, then the process."""
    loop = "import time\nwhile time.process_time() < 0.3: pass\n"
    child = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {loop!r}])\n{loop}"
    code = f"{child}print('worked', flush=True)\ninput()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    before = read_counters()
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as process:
        assert process.stdout is not None and process.stdout.readline().strip() == b"worked"
        alive = read_counters()
        process.communicate(b"\n")
    after = read_counters()
    assert alive.own - before.own > 0.5 and after.own >= alive.own - 0.05


def test_the_counters_of_this_machine():
    before = read_counters()
    sum(range(3_000_000))
    after = read_counters()
    assert after.clock > before.clock and after.own >= before.own and after.cores >= 1
    assert after.all is None or after.all >= before.all > 0
