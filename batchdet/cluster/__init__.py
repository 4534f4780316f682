"""Submission to Ray clusters, Kubernetes manifests, and the check of this machine."""
