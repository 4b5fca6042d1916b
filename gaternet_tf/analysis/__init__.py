"""What the gates of a trained network do: statistics, figures and a report.

python -m gaternet_tf.analysis --workdir=RUN

The command runs the network over a split once (`collecting`), computes every number
(`statistics`, `separation`) and saves both as `gates.npz` and `analysis.json` (`files`). Figures
(`figures`) and the report (`report`) are drawn from these two files alone.
"""
