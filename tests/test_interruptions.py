"""Ctrl-C inside native calls that would take days, and the end of the interpreter meanwhile."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

# Each would run for days, whatever the machine.
LONG = {
    "evaluate, one model": "tk.evaluate(tk.TiedAutoencoder(5, 2), tk.SparseFeatures(5, 0.1), 2**43)",
    "evaluate, many models": "tk.evaluate(tk.TiedAutoencoder(5, 2, 500), tk.SparseFeatures(5, 0.5), 2**40)",
    "evaluate, large": "tk.evaluate(tk.TiedAutoencoder(200, 40), tk.SparseFeatures(200, 0.05), 2**40)",
    "sample": "tk.SparseFeatures(2**16, [0.5] + [0.0] * (2**16 - 1)).sample(0, 2**31 - 1, layout='sparse')",
}
FIT = "tk.fit(tk.TiedAutoencoder(5, 2), tk.SparseFeatures(5, 0.5), 2**32 - 1, 4096, record_every=2**31)"


def run(code: str) -> subprocess.CompletedProcess:
    """In an interpreter of its own, which must not hang."""
    code = textwrap.dedent(code)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)


@pytest.mark.slow
@pytest.mark.parametrize("call", LONG.values(), ids=LONG)
def test_ctrl_c_is_heard(call):
    done = run(f"""
        import os, signal, threading
        import toykern as tk

        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
            {call}
        except KeyboardInterrupt:
            print("heard")
        print(tk.evaluate(tk.TiedAutoencoder(2, 1), tk.SparseFeatures(2, 0.1), 100).shape)
    """)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["heard", "torch.Size([1])"]


@pytest.mark.slow
def test_a_handler_that_does_not_raise_does_not_end_the_call():
    done = run("""
        import os, signal, threading
        import toykern as tk

        seen = []
        signal.signal(signal.SIGUSR1, lambda number, frame: seen.append(number))
        timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR1))
        model, data = tk.TiedAutoencoder(5, 2, 3), tk.SparseFeatures(5, 0.5)
        expected = tk.evaluate(model, data, 2**21)
        timer.start()
        while not seen:
            assert (tk.evaluate(model, data, 2**21) == expected).all()
        print("same")
    """)
    assert done.returncode == 0 and done.stdout == "same\n", done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("call", [FIT, *list(LONG.values())[1:]], ids=["fit", *list(LONG)[1:]])
def test_the_interpreter_ends_quietly_while_a_daemon_thread_is_in_there(call):
    done = run(f"""
        import threading, time
        import toykern as tk

        def work():
            {call}

        threading.Thread(target=work, daemon=True).start()
        time.sleep(0.7)
        print("over")
    """)
    assert (done.returncode, done.stdout, done.stderr) == (0, "over\n", "")
