"""The policy and its reward channel: parameters as NNX modules (pytrees), everything else as functions."""
