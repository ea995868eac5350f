"""The agent: decides, for each input, where it is answered. No torch, no cloud code."""
