"""The four deployable services; no service imports another, they meet in the generated stubs only."""
