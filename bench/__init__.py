"""Measurements of this machine and this code (``make bench``); no part of the product."""
