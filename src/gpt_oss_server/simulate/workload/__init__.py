"""Who asks for how much, and when: recorded, made up, described."""
