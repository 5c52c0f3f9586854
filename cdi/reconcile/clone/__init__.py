"""Volumes of other volumes, in a cluster."""
