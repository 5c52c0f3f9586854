"""DataVolumes and the PVCs that they fill."""
