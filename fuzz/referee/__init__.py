"""The referee: judges anybody's implementation of a transposed 3-D convolution, property by property.

The file under judgement is loaded in a worker process only (loading, adapter, watch, probes, subject); that process
never computes what is expected. The parent draws the cases, knows the answers and gives the verdicts from raw bits
(pool, properties, judge, report, command), and imports no torch.
"""
