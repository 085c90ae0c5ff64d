"""Submissions: a vendor's results, sealed into one file that anyone can check without the hardware."""
