"""Teams of threads of our own (builds without libgomp): who is in them, and that they end."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

PROGRAM = r"""
#include <atomic>
#include <cstdio>
#include <mutex>
#include <set>

#include "cpu/threads/parallel.h"

using namespace toykern;

int main() {
    if (thread_rank() != 0 || team_size() != 1) return 1;
    for (int threads = 1; threads <= 9; ++threads) {
        std::mutex mutex;
        std::set<int> ranks;
        std::atomic<int> calls{0}, wrong{0};
        parallel(threads, [&] {
            ++calls;
            const int rank = thread_rank();
            if (team_size() != threads) ++wrong;
            parallel(4, [&] {  // inside another team, one
                if (thread_rank() != 0 || team_size() != 1) ++wrong;
            });
            if (thread_rank() != rank || team_size() != threads) ++wrong;
            const std::lock_guard<std::mutex> lock(mutex);
            ranks.insert(rank);
        });
        if (calls != threads || wrong) return 1 + threads;
        if ((int)ranks.size() != threads || *ranks.begin() != 0) return 12;
        if (*ranks.rbegin() != threads - 1 || thread_rank() != 0 || team_size() != 1) return 11;
    }
    std::puts("all there");
}
"""


@pytest.mark.slow
def test_a_team_is_whole_and_ends(tmp_path):
    (tmp_path / "team.cpp").write_text(PROGRAM)
    command = ["g++", "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-DTOYKERN_OWN_THREADS", "-pthread"]
    command += ["-Icsrc", "csrc/cpu/threads/own_threads.cpp", str(tmp_path / "team.cpp")]
    subprocess.run([*command, "-o", str(tmp_path / "team")], cwd=ROOT, check=True)
    done = subprocess.run([tmp_path / "team"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "all there\n")
