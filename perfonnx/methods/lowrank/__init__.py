"""Low-rank filters, and the methods that they are compared with: a layer becomes several smaller ones, standard ONNX.

One file for each method. What they share: `form` says which convolutions stand for a layer and what they multiply,
`rows` is what a layer sees and should give, `metric` in what sense filters are approximated, `multilinear` approximates
them by products of factors, and `base` does the rest, so that a method says its form and its factors alone.
"""
