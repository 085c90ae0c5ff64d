"""Submissions: a vendor's results, sealed into one file that anyone can check without the hardware."""

SECONDS = 4
"""CPU time that checking a bundle may take, unless told otherwise: a busy machine must not make a bundle a bad one."""
MEBIBYTES = 512
"""Memory that it may take."""
