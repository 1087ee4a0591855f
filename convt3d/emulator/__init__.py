"""The kernels on a CPU: the same strings, compiled by g++ against `host.py` instead of the CUDA headers.

A block's threads are fibers that switch only at collectives (barrier, shuffle), so a schedule is data: `fast` runs them
in order, `hostile` in an order shuffled from a seed at every barrier, over poisoned shared memory, with asynchronous
copies that land as early or as late as they may. `runtime.py` sets the mode.
"""
