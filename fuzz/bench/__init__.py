"""The benchmark: our times beside those of PyTorch's own op and beside what the card could do.

    suite.py    the named layers, and what one row of the table measures
    sample.py   random layers, to look for cliffs
    floor.py    the least time a layer can take on a card whose ceilings are known
    results.py  rows and runs as data, to JSON and back
    report.py   the table, the geometric means beside their targets
    picture.py  bars for the suite, a scatter for samples, as SVG
    calls.py    operands and the calls that are timed, ours and native's
    timer.py    the clock: CUDA events, graph replay, host time; the ceilings of the card
    measure.py  one row: checked, then timed
    command.py  python -m fuzz bench

Only calls, timer and measure import torch: what was measured elsewhere is shown without a GPU.
"""
