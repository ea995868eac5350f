"""What this device has and can do, and what keeps an agent from serving on it: ``edgemux doctor``.

Probes look (probes.py, timing.py, cloud_probe.py), each within a time; findings are made of what they saw by pure
functions (resources.py, models.py, access.py, link.py); examination.py is the order.
"""
