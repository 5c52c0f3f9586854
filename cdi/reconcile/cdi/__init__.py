"""The configuration of the installation."""
