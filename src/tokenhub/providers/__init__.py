"""How each upstream is spoken to."""
