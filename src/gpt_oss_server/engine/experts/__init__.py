"""A mixture's experts as the engine computes them: which module, from which weights.

`choice` says who computes them and in what form they are held; `stored` holds MXFP4 as it is
stored and computes with PyTorch; `modules` computes with Triton kernels; `replace` puts those
into a loaded model; `loading` reads MXFP4 checkpoints without widening them.
"""
