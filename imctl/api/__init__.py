"""The API `imctl.dev/v1alpha1` on Kubernetes: kinds as typed models, CRDs made of these."""
