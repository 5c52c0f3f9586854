"""Clones of volumes and snapshots in a cluster."""
