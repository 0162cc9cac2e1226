// What a kernel's call owes the interpreter: its lock is released meanwhile, Ctrl-C is heard, and the interpreter's end
// is left in peace.
#pragma once
#include <Python.h>
#include <cxxabi.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <thread>

#include "toykern/params.h"

namespace toykern {

// Takes the interpreter's lock back. An interpreter that is being finalized does not hand it out: it ends the thread by
// unwinding its stack (until 3.13), which no C++ frame above would survive. Such a daemon thread waits here for the end
// of the process instead.
inline void take_lock(PyThreadState* state) noexcept {
    try {
        PyEval_RestoreThread(state);
    } catch (abi::__forced_unwind&) {
        for (;;) pause();
    }
}

// The lock is released for the scope.
class Unlocked {
  public:
    Unlocked() : state_(PyEval_SaveThread()) {}
    ~Unlocked() { take_lock(state_); }
    Unlocked(const Unlocked&) = delete;
    Unlocked& operator=(const Unlocked&) = delete;

  private:
    PyThreadState* state_;
};

// The same, and kernels that ask `stop()` leave when a signal's handler has raised. The thread that made this looks for
// signals, at most twenty times a second; in others than the main thread there are none.
class UnlockedUntilSignal {
  public:
    UnlockedUntilSignal() : owner_(std::this_thread::get_id()), state_(PyEval_SaveThread()) {}
    ~UnlockedUntilSignal() { take_lock(state_); }
    UnlockedUntilSignal(const UnlockedUntilSignal&) = delete;
    UnlockedUntilSignal& operator=(const UnlockedUntilSignal&) = delete;

    Stop stop() { return {asked, this}; }
    // Whether an exception is set, for the caller to raise.
    bool raised() const { return raised_.load(std::memory_order_relaxed); }

  private:
    using Clock = std::chrono::steady_clock;
    static bool asked(void* context) {
        auto& self = *static_cast<UnlockedUntilSignal*>(context);
        if (self.raised()) return true;
        if (std::this_thread::get_id() != self.owner_ || Clock::now() < self.next_) return false;
        take_lock(self.state_);
        if (PyErr_CheckSignals() != 0) self.raised_.store(true, std::memory_order_relaxed);
        self.state_ = PyEval_SaveThread();
        self.next_ = Clock::now() + std::chrono::milliseconds(50);
        return self.raised();
    }

    const std::thread::id owner_;
    PyThreadState* state_;
    Clock::time_point next_ = Clock::now() + std::chrono::milliseconds(50);
    std::atomic<bool> raised_{false};
};

}  // namespace toykern
