"""Pods of workers: manifests, jobs, and what their status says."""
