"""Why a smaller network isn't faster on a device, derived from numbers, and what the latency model says would help.

- :mod:`compress.explaining.reasons`: from each layer's numbers to reasons in words
- :mod:`compress.explaining.remedies`: changes that the model predicts to help, and by how much
- :mod:`compress.explaining.explain`: both for a state that a job made
- :mod:`compress.explaining.runs`: of a run's candidates, measured where this machine is the target
"""
