"""The control plane, the bulk plane, and their fakes."""
