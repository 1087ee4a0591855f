"""The judge: transposed 3-D convolution and its gradients in NumPy, short enough to read."""

from reference.scatter import Parameters, Results, evaluate, magnitude, output_size, products

__all__ = ["Parameters", "Results", "evaluate", "magnitude", "output_size", "products"]
