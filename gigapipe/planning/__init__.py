"""How many ranks, which mesh, how much memory and time: what a training will take before any of it runs.

`cost.py` runs one rank's step without pixels and counts; `machines.py` says what machines can do; `scaling.py` makes
seconds of both; `streamed.py` says what one rank needs where no mesh does; `calibration.py` measures this machine.
What streaming counts alike stands in `gigapipe/spatial/costs.py`.
"""
