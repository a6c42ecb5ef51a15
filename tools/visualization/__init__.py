"""Pictures of attention maps, and what many of them together say."""
