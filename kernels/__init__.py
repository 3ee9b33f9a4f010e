"""Triton kernels of the decoder: one pass per query, nothing per query in memory but the output.

- ``trig``: sines and cosines that cost a handful of instructions;
- ``network``: what all kernels share: where a query lies, the gather, products, the output;
- ``projected``: the decoder on LR-size content (forms ``content`` and ``modulation``);
- ``quantised``: the decoder on LR-size content with 8-bit integers in the hidden products;
- ``direct``: the decoder on features (form ``direct``);
- ``backward``: the element-wise part of the backward, and sums over the queries of each LR pixel;
- ``tiles``: tile sizes per architecture, with their reasons;
- ``launch``, ``launch_quantised``: from a ``Problem`` to launches.

docs/kernels/triton.md explains the structure and what was tried. Nothing here imports CUDA: on CPU
tensors the kernels run under ``TRITON_INTERPRET=1``.
"""
