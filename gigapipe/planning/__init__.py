"""How many ranks, which mesh, how much memory and time a training needs, estimated before it runs.

`cost.py` runs one rank's step without pixels and counts; `machines.py` describes machines; `scaling.py` computes times
from both; `streamed.py` describes what one rank needs if no mesh is sufficient; `calibration.py` measures this machine.
The costs of operations, also used for streaming, are in `gigapipe/spatial/costs.py`.
"""
