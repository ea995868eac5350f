"""How the multiplexer is made: labels, fit, calibrate, report. Offline; torch is allowed here."""
