"""Mutation testing: what the harness catches is measured on bugs that are planted on purpose.

    mutant.py       what a mutant is, and what became of one
    by_hand/        bugs that real kernels had
    operators.py    the automatic mutants: every place of the kernel strings where an operator applies
    kernel_text.py  the kernel strings as syntax trees
    alike.py        names that are easily taken for one another
    shown.py        how a change is written for people
    schemata.py     all mutants of the kernels in one source, each behind a run-time switch
    runner.py       runs mutants in a process of their own
    server.py       that process: it holds libraries, cases and expectations, and forks for each mutant
    check_name.py   which check killed a mutant, in a few words
    reasons.py      why mutants live: equivalent.txt argues them away, survivors.txt explains them
    report.py       the kill matrix
    command.py      python -m fuzz mutants

Both kinds of mutants are judged by what judges a campaign: fuzz.subjects runs a case, fuzz.checks looks at the outcome.
"""
