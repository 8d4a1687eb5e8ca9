"""Semantic-token kernels, one operator per file: NumPy reference, Triton kernel, launch arithmetic.

The same kernel is a torch operator (`torch_operators`), PTX in the wheel (`compile` writes it, `ptx` reads
it), a TensorRT plugin (`plugins`) and a launch through the CUDA driver (`driver`). Importing this package
loads none of Triton, torch and TensorRT.
"""
