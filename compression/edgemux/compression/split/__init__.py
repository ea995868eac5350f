"""Cutting a graph in two: the first part runs on a device, what comes out is sent, the second part runs in the cloud."""
