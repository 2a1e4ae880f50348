"""Exact, faster replacements. Each says which plain lines it equals; a test holds it to them."""
