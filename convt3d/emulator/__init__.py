"""The kernels on a CPU: the same strings, compiled by g++ against `host.py` instead of the CUDA headers.

A block's threads are fibers that switch only at collectives (barrier, shuffle), so a schedule is data: `fast` runs them
in order, `hostile` in an order shuffled from a seed at every barrier, over poisoned shared memory, with asynchronous
copies that land as early or as late as they may. `asan` and `tsan` run the hostile schedule under a sanitizer.

    runtime.py           sets the mode; the error that a fault of a kernel raises
    host.py              the machine layer: the schedule, barriers, signals, copies, launch
    host_matrix.py       its matrix units
    watch.py             what it tells the sanitizers; nothing in an ordinary build
    sanitized.py         runs a launch under a sanitizer, in a process of its own
    sanitized_child.py   the program of that process
    report.py            from a sanitizer's report to one line
"""
