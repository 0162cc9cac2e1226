"""The ladder: one training step in six programs, each with one idea more than the one before.

`python -m bench.ladder` builds them, checks them against a float64 reference, times them in turn, and
writes a record and the plot of docs/ladder.md. The programs are the C++ files beside this one: `problem.h`
says what a step computes, `naive.cpp` is the loop as one writes it down, and each other file opens with its
idea.
"""
