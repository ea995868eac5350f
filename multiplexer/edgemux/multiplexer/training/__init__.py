"""How the multiplexer is made: labels, fit, calibrate, certify, report. Offline; torch is allowed here."""
