"""Boot check of a disk in a virtual machine."""
