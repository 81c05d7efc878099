"""The ops in Triton, kernels that are Python.

They run on tensors of CUDA, and with TRITON_INTERPRET=1 on those of the CPU, where one can step
through a kernel. None of them has ever run on a GPU.

A convolution travels as in the other backends: `conv.py` (tensors to arguments), `problem.py`
(sizes, and which algorithm), `tiles.py` (which tile), a kernel file, `epilogue.py`. Nothing but
`problem.py` is imported before the backend is first used.
"""
