"""How the multiplexer is made: answers, their posterior, fit, calibrate, report. Offline; torch is allowed here."""
