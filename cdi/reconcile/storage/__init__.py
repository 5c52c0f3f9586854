"""Storage classes, their profiles, and the defaults that PVCs get from them."""
