"""The techniques of the survey, a file each: what ``benchmarks/compression.py`` puts into its table."""
