"""ObjectTransfer: rebinding of a volume to a PVC in another namespace or with another name, without copying."""
