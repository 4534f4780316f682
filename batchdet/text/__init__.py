"""Text of other people, made safe to show."""
