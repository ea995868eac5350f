"""Cutting a graph in two: the head runs on a device, what it makes is sent, the tail runs in the cloud."""
