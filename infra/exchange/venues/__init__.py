"""The venues: one module or package each, what they are to the gateway, and their registry."""
