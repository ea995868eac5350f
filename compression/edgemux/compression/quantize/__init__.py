"""Fewer bits per number: for storage only (``weights``) or for arithmetic too (``static``)."""
