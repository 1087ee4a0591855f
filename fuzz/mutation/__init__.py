"""Mutation testing: what the harness catches is measured on bugs that are planted on purpose.

mutant.py      what a mutant is, and what became of one
operators.py   the automatic mutants: every place of the kernel strings where an operator applies
schemata.py    all mutants of the kernels in one source, each behind a run-time switch
runner.py      runs mutants, each in a fork of a process that holds cases and expectations
equivalent.py  the mutants that are argued away (equivalent.txt)
by_hand.py     bugs that real kernels had
report.py      the kill matrix
command.py     python -m fuzz mutants
"""
