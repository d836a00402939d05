"""Base models, adapters on one frozen base, and adapter folders on disk."""
