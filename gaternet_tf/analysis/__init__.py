"""Analysis of a trained network's gates: statistics, figures and a report.

python -m gaternet_tf.analysis --workdir=RUN

The command runs the network over a split once (`collecting`), computes every number
(`statistics`, `separation`) and saves the results as `gates.npz` and `analysis.json` (`files`).
Figures (`figures`) and the report (`report`) are drawn from these two files alone.
"""
