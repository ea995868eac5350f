"""One tensor used in several places: layers that share weights, tasks that share a backbone."""
