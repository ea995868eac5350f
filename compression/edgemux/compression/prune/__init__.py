"""Taking channels, units and layers out of a net."""
