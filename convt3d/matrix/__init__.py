"""forward on the matrix units (tensor cores), seen from the host: how a call is cut into blocks.

The kernel is in convt3d/kernels: matrix.py and the modules that start with its name.

    tile.py     a tile: one way to cut the work, and its name
    work.py     a call, and what a tile makes of it: places, layout of shared memory, whether it fits
    choice.py   the tiles worth a thought, an estimate of their time, and the one that is chosen
    launch.py   from tensors and a tile to the kernel's parameter struct
"""
