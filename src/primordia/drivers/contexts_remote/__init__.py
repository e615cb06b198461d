"""The contexts port over the API of the node that runs the context."""
