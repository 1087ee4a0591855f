"""The CUDA C++ of the op, as inline strings: one subject a module, each with one `SOURCE`.

Every string compiles twice: by nvcc for the GPU and by g++ for the emulator. To make that possible a kernel speaks to
the machine only through the functions that `primitives.py` (CUDA) and `convt3d/emulator/host*.py` (host) both define;
they must keep the same names and meanings.

    primitives.py   the machine layer on CUDA: indices, barriers, shuffle, signals, asynchronous copy, matrix
                    fragments, conversions, launch
    params.py       the parameter structs, passed by value, and the arithmetic of phases
    gather.py       forward and grad_input
    columns.py      how outputs and inputs of an axis meet, for the next two
    lines.py        forward with few channels a group, depthwise above all
    matrix*.py      forward on the matrix units: params (struct and notes), load, multiply, store, and the kernel
    weight.py       grad_weight and grad_bias, and the ordered second pass of split-K

`python -m convt3d.kernels` formats the strings, compiles them, and dumps a whole translation unit.
"""
