"""Cards by family: plain data with its sources, collected by `saccade.models.zoo`."""
